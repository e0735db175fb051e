"""libxl's JSON: what is made of it, what is refused."""

import pytest
from xend_harness import config

from pyxen.errors import UserError
from pyxen.toolstack import libxl_json
from pyxen.toolstack.lifecycle import action_for
from pyxen.toolstack.status import parse_status


def changed(section, **values):
    made = config()
    made[section] = {**made[section], **values}
    return made


def test_spec():
    spec = libxl_json.domain_spec({**config("d", "console=hvc0"), "on_crash": "preserve"})
    assert (spec["memory_kib"], spec["maxmem_kib"]) == (65536, 131072)
    assert (spec["vcpus"], spec["maxvcpus"]) == (1, 1)
    assert (spec["cmdline"], spec["ramdisk"], spec["on_crash"]) == (
        "console=hvc0",
        None,
        "preserve",
    )


@pytest.mark.parametrize(
    "bad",
    [
        changed("c_info", type="hvm"),
        changed("b_info", kernel=None),
        changed("b_info", kernel=5),
        changed("b_info", target_memkb="much"),
        changed("b_info", target_memkb=-1),
        changed("b_info", target_memkb=1 << 50),
        changed("b_info", target_memkb=True),
        changed("b_info", max_vcpus=0),
        changed("b_info", avail_vcpus=[]),
        changed("b_info", avail_vcpus=[0, 1, 2]),
        {**config(), "b_info": []},
    ],
)
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(UserError) as refused:
        libxl_json.domain_spec(bad)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("bad", [changed("c_info", name=""), changed("c_info", name=None)])
def test_a_domain_needs_a_name(bad):
    with pytest.raises(UserError):
        libxl_json.name_of(bad)


@pytest.mark.parametrize(
    ("given", "ports"), [({}, 1023), ({"event_channels": 0}, 1023), ({"event_channels": 9}, 9)]
)
def test_event_channels(given, ports):
    """libxl's default is also what 0 means."""
    assert libxl_json.domain_spec(changed("b_info", **given))["event_channels"] == ports


def test_grant_limits():
    """0 is passed on: the hypervisor says what it cannot have."""
    limits = {"max_grant_frames": 0, "max_maptrack_frames": 0, "max_grant_version": 1}
    spec = libxl_json.domain_spec(changed("b_info", **limits))
    assert {name: spec[name] for name in limits} == limits
    assert not set(limits) & set(libxl_json.domain_spec(config()))
    with pytest.raises(UserError, match="max_grant_frames is 'x'"):
        libxl_json.domain_spec(changed("b_info", max_grant_frames="x"))


def test_defaults_are_entered_where_libxl_has_them():
    kept = libxl_json.with_defaults(config())
    assert list(kept["c_info"])[:3] == ["type", "name", "domid"]
    assert kept["b_info"]["video_memkb"] == 0
    shown = libxl_json.live_config(kept, "new", 4096)
    assert shown["c_info"]["name"] == "new" and shown["b_info"]["target_memkb"] == 4096
    assert shown["b_info"]["sched_params"]["sched"] == "credit2"
    assert kept["c_info"]["name"] == "d1"


@pytest.mark.parametrize(
    ("reason", "given", "action"),
    [
        ("poweroff", {}, "destroy"),
        ("reboot", {"on_reboot": "restart"}, "restart"),
        ("suspend", {"on_suspend": "destroy"}, "preserve"),
        ("crash", {"on_crash": "coredump_destroy"}, "coredump_destroy"),
        ("unknown", {"on_crash": "preserve"}, "destroy"),
    ],
)
def test_actions(reason, given, action):
    assert action_for(given, reason) == action


STATUS = {
    "state": {"running": 1},
    "vcpus": [{"id": 0, "state": "running", "cpu_time_ns": 1}],
    "memory_kib": 1,
    "maxmem_kib": 1,
    "vcpus_online": 1,
    "cpu_time_ns": 1,
    "pause_count": 0,
}


def test_status_is_checked():
    assert parse_status(STATUS)["state"]["running"] is True
    assert parse_status({**STATUS, "shutdown_reason": "\x1b[2J"})["shutdown_reason"] is None
    assert parse_status({**STATUS, "shutdown_reason": "unknown"})["shutdown_reason"] == "unknown"
    for key in STATUS:
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            parse_status({k: v for k, v in STATUS.items() if k != key})
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            parse_status({**STATUS, key: "nonsense"})
