"""xl.cfg: from a configuration file to a typed DomainConfig, and to xl's JSON.

lexer → parser → load (schema; boot, resources, hvm, device_lists) → DomainConfig → json_output
"""

from pyxen.config.cpus import Host
from pyxen.config.disk import parse_disk
from pyxen.config.domain_config import DomainConfig
from pyxen.config.json_output import to_xl_json
from pyxen.config.load import interpret, load_domain_config
from pyxen.config.parser import RawConfig, parse_file, parse_text
from pyxen.config.report import ConfigWarning
from pyxen.config.support import unsupported
from pyxen.config.vif import parse_vif

__all__ = [
    "ConfigWarning",
    "DomainConfig",
    "Host",
    "RawConfig",
    "interpret",
    "load_domain_config",
    "parse_disk",
    "parse_file",
    "parse_text",
    "parse_vif",
    "to_xl_json",
    "unsupported",
]
