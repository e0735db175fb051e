"""Page tables by every path: mmu_update, update_va_mapping, mmuext_op, writes that Xen emulates.

Source: xen/arch/x86/mm.c (do_mmu_update, mod_l1_entry, get_page_from_l1e, do_mmuext_op),
xen/arch/x86/pv/ro-page-fault.c. One of the pages is changed, then looked at through its address.
"""

from __future__ import annotations

from pyxen.abi.errno import E

from ..case import Case

EPERM, EFAULT, EINVAL = -E.PERM.value, -E.FAULT.value, -E.INVAL.value
ENOSYS, ESRCH, EBUSY = -E.NOSYS.value, -E.SRCH.value, -E.BUSY.value
EACCES = -E.ACCES.value

_TWO_PAGES = """
    movq    $111, pages
    movq    $222, pages+4096
"""
_FLUSH = "mmuext MMUEXT_INVLPG_LOCAL, $pages"
# Entries of RBX at the address of RBP: which page `pages` shows now.
_LOOK = f"{_FLUSH}\n report pages"


def _write(name: str, instruction: str, *expect: int, before: str = "") -> Case:
    """An instruction that writes RAX to the entry at RBP, which maps `pages`."""
    return Case(
        f"page_table/write-{name}",
        "pv/ro-page-fault.c: a kernel's write to its read-only page table is done for it",
        f"""
        {_TWO_PAGES}
        pte_of  $pages, %rbp
        entry_for $pages+4096, PAGE_RW, %rax
        {before}
        {instruction}
        {_LOOK}""",
        expect,
    )


def _refused(name: str, source: str, setup: str, error: int) -> list[Case]:
    """An entry (set up in RAX) for `pages` that no path may write."""
    after = "report pages"
    first = f"{_TWO_PAGES}\n {setup}\n mov %rax, %rbx\n"
    return [
        Case(
            f"entry/{name}-by-mmu_update",
            source,
            f"{first} pte_maddr_of $pages, %rbp\n mmu_update %rbp, %rbx\n report %rax\n {after}",
            (error, 111),
        ),
        Case(
            f"entry/{name}-by-va_mapping",
            source,
            f"{first} result_of update_va_mapping, $pages, %rbx, $UVMF_INVLPG\n {after}",
            (error, 111),
        ),
        Case(
            f"entry/{name}-by-write",
            f"{source}; an emulated write that is refused is the guest's #PF",
            f"""{first} pte_of $pages, %rbp
            expecting @after
            mov     %rbx, (%rbp)
    @after: report trap_vector
            {after}""",
            (14, 111),
        ),
    ]


WRITES = [
    _write("mov", "mov %rax, (%rbp)", 222),
    _write("mov-dword", "mov %eax, (%rbp)", 222),
    _write("xchg", "xchg %rax, (%rbp)", 222),
    _write("cmpxchg", "lock cmpxchg %rbx, (%rbp)", 222, before="mov %rax, %rbx\n mov (%rbp), %rax"),
    _write("cmpxchg-fails", "lock cmpxchg %rbx, (%rbp)\n setz %cl\n movzbl %cl, %ecx\n report %rcx",
           0, 111, before="mov %rax, %rbx\n xor %eax, %eax"),
    _write("stos", "mov %rbp, %rdi\n cld\n stosq\n sub %rbp, %rdi\n report %rdi", 8, 222),
    _write("or", "lock orq $0x200, (%rbp)\n mov (%rbp), %rcx\n and $0x200, %ecx\n report %rcx",
           0x200, 111),
    _write("and", "lock andq $~0x40, (%rbp)\n mov (%rbp), %rcx\n and $0x40, %ecx\n report %rcx",
           0, 111),
    _write("btr", "lock btrq $6, (%rbp)\n setc %cl\n movzbl %cl, %ecx\n report %rcx", 1, 111,
           before="movq $5, pages+8"),
    _write("bts", "lock btsq $9, (%rbp)\n setc %cl\n movzbl %cl, %ecx\n report %rcx", 0, 111),
    _write("movb", "movb $0x61, (%rbp)\n mov (%rbp), %rcx\n and $2, %ecx\n report %rcx", 0, 111),
]  # fmt: skip

UPDATES = [
    Case(
        "mmu_update/normal",
        "do_mmu_update: MMU_NORMAL_PT_UPDATE of an L1 entry; done counts it",
        f"""{_TWO_PAGES}
        pte_maddr_of $pages, %rbp
        entry_for $pages+4096, PAGE_RW, %rbx
        mmu_update %rbp, %rbx
        report  %rax
        mov     request_done, %eax
        report  %rax
        {_LOOK}""",
        (0, 1, 222),
    ),
    Case(
        "mmu_update/preserve-ad",
        "MMU_PT_UPDATE_PRESERVE_AD keeps accessed and dirty",
        f"""{_TWO_PAGES}
        pte_maddr_of $pages, %rbp
        or      $MMU_PT_UPDATE_PRESERVE_AD, %rbp
        entry_for $pages+4096, 3, %rbx
        mmu_update %rbp, %rbx
        report  %rax
        pte_of  $pages, %rbp
        mov     (%rbp), %rcx
        and     $0x60, %ecx
        report  %rcx
        {_LOOK}""",
        (0, 0x60, 222),
    ),
    Case(
        "mmu_update/not-present",
        "an entry that is not present may hold anything",
        """
        pte_maddr_of $pages, %rbp
        mmu_update %rbp, $0x12345000
        report  %rax
        mmuext  MMUEXT_INVLPG_LOCAL, $pages
        expecting @after
        mov     pages, %rax
@after: report  trap_vector
        report  trap_error""",
        (0, 14, 0),
    ),
    Case(
        "mmu_update/m2p",
        "MMU_MACHPHYS_UPDATE changes the M2P entry of an own frame",
        """
        mfn_of  $pages, %rbx
        mov     %rbx, %rbp
        shl     $12, %rbp
        or      $MMU_MACHPHYS_UPDATE, %rbp
        mmu_update %rbp, $0x777
        report  %rax
        movabs  $MACH2PHYS_VIRT_START, %rcx
        report  (%rcx,%rbx,8)""",
        (0, 0x777),
    ),
    Case(
        "mmu_update/m2p-foreign",
        "MMU_MACHPHYS_UPDATE of a frame of Xen's is EINVAL",
        "mov $0x10000|MMU_MACHPHYS_UPDATE, %ebp\n mmu_update %rbp, $0x777\n report %rax",
        (EINVAL,),
    ),
    Case(
        "mmu_update/command",
        "do_mmu_update: commands beyond MMU_PT_UPDATE_NO_TRANSLATE are ENOSYS",
        "pte_maddr_of $pages, %rbp\n or $7, %rbp\n mmu_update %rbp, $0\n report %rax",
        (ENOSYS,),
    ),
    Case(
        "mmu_update/no-frame",
        "a table that does not exist is EINVAL",
        "movabs $0xfffffffff000, %rbp\n mmu_update %rbp, $0\n report %rax",
        (EINVAL,),
    ),
    Case(
        "mmu_update/plain-page",
        "do_mmu_update: a frame that is no table (PGT_writable_page) is simply written",
        "maddr_of $pages+64, %rbp\n mmu_update %rbp, $0x4711\n report %rax\n report pages+64",
        (0, 0x4711),
    ),
    Case(
        "mmu_update/list-fault",
        "a list that cannot be read is EFAULT; nothing is done",
        """
        movl    $77, request_done
        result_of mmu_update, $NOT_MAPPED, $1, $request_done, $DOMID_SELF
        mov     request_done, %eax
        report  %rax""",
        (EFAULT, 0),
    ),
    Case(
        "mmu_update/list-in-xen",
        "guest_handle_okay: a list in the hypervisor's range is EFAULT",
        """
        movabs  $HYPERVISOR_VIRT_START, %rbx
        result_of mmu_update, %rbx, $1, $0, $DOMID_SELF""",
        (EFAULT,),
    ),
    Case(
        "mmu_update/none",
        "a list of none is 0, wherever it is",
        "result_of mmu_update, $0, $0, $0, $DOMID_SELF",
        (0,),
    ),
    Case(
        "mmu_update/stops-at-error",
        "the list ends at the first error; done says how many were carried out",
        """
        pte_maddr_of $pages, %rbp
        mov     %rbp, @list
        entry_for $pages+4096, PAGE_RW, %rbx
        mov     %rbx, @list+8
        result_of mmu_update, $@list, $3, $request_done, $DOMID_SELF
        mov     request_done, %eax
        report  %rax""",
        (ENOSYS, 1),
        "@list: .quad 0, 0, 7, 0, 0, 0",
    ),
    Case(
        "mmu_update/foreign",
        "get_pg_owner: a domain that does not exist is ESRCH",
        "result_of mmu_update, $request, $0, $0, $999",
        (ESRCH,),
    ),
    Case(
        "mmu_update/own-number",
        "get_pg_owner: the caller's own number instead of DOMID_SELF is ESRCH",
        "result_of mmu_update, $request, $0, $0, $7",
        (ESRCH,),
    ),
    Case(
        "mmu_update/foreign-tables",
        "do_mmu_update: page tables of a domain that does not exist are ESRCH",
        "result_of mmu_update, $request, $0, $0, $(1000<<16)|DOMID_SELF",
        (ESRCH,),
    ),
    Case(
        "va_mapping/normal",
        "do_update_va_mapping with UVMF_INVLPG: the new page is seen at once",
        f"""{_TWO_PAGES}
        entry_for $pages+4096, PAGE_RW, %rbx
        result_of update_va_mapping, $pages, %rbx, $UVMF_INVLPG
        report  pages""",
        (0, 222),
    ),
    Case(
        "va_mapping/flush-all",
        "UVMF_TLB_FLUSH | UVMF_ALL",
        f"""{_TWO_PAGES}
        entry_for $pages+4096, PAGE_RW, %rbx
        result_of update_va_mapping, $pages, %rbx, $UVMF_TLB_FLUSH|UVMF_ALL
        report  pages""",
        (0, 222),
    ),
    Case(
        "va_mapping/unmap",
        "an entry of 0 takes the page away",
        """
        result_of update_va_mapping, $pages, $0, $UVMF_INVLPG
        expecting @after
        mov     pages, %rax
@after: mov     $pages, %rax
        sub     trap_cr2, %rax
        report  trap_vector
        report  %rax""",
        (0, 14, 0),
    ),
    Case(
        "va_mapping/no-table",
        "map_guest_l1e: an address without an L1 table is EINVAL",
        "result_of update_va_mapping, $NOT_MAPPED, $0, $0",
        (EINVAL,),
    ),
    Case(
        "va_mapping/xen-address",
        "map_guest_l1e: __addr_ok fails for the hypervisor's range: EINVAL",
        "movabs $HYPERVISOR_VIRT_START, %rbx\n result_of update_va_mapping, %rbx, $0, $0",
        (EINVAL,),
    ),
    Case(
        "va_mapping/non-canonical",
        "map_guest_l1e: EINVAL",
        "movabs $NON_CANONICAL, %rbx\n result_of update_va_mapping, %rbx, $0, $0",
        (EINVAL,),
    ),
    Case(
        "va_mapping/otherdomain",
        "do_update_va_mapping_otherdomain: a domain that does not exist is ESRCH",
        "result_of update_va_mapping_otherdomain, $pages, $0, $0, $999",
        (ESRCH,),
    ),
]
REFUSED = [
    *_refused("xen-frame", "get_page_from_l1e: a frame of Xen's is EBUSY (could_not_pin)",
              "mov $0x10063, %eax", EBUSY),
    *_refused("m2p-writable", "XSA: the M2P may not be mapped writable",
              "mov $(0x1000+2064)<<12|PAGE_RW, %eax", EBUSY),
    *_refused("no-frame", "a frame beyond memory: not MMIO of the guest's: EPERM",
              "movabs $0x3fffffff063, %rax", EPERM),
    *_refused("invalid-mfn", "get_page_from_l1e: INVALID_MFN is EINVAL",
              "movabs $0xffffffffff063, %rax", EINVAL),
    *_refused("writable-table", "get_page_type: a page table cannot be writable too: EBUSY",
              "mfn_of l4, %rax\n shl $12, %rax\n or $PAGE_RW, %rax", EBUSY),
]  # fmt: skip
TYPES = [
    Case(
        "type/read-only-table",
        "a page table may be mapped read-only",
        """
        entry_for l4, PAGE_RO, %rbx
        result_of update_va_mapping, $pages, %rbx, $UVMF_INVLPG
        mov     pages+0xff8, %rax
        and     $1, %eax
        report  %rax""",
        (0, 1),
    ),
    Case(
        "type/pin-mapped-writable",
        "get_page_type: a page that is mapped writable cannot become a table: EINVAL",
        "mfn_of $pages, %rbx\n mmuext MMUEXT_PIN_L1_TABLE, %rbx\n report %rax",
        (EINVAL,),
    ),
    Case(
        "type/pin-l1",
        "MMUEXT_PIN_L1_TABLE of a page that is mapped read-only; it can then be unpinned, once",
        """
        remap   $pages, PAGE_RO
        mfn_of  $pages, %rbx
        mmuext  MMUEXT_PIN_L1_TABLE, %rbx
        report  %rax
        mmuext  MMUEXT_UNPIN_TABLE, %rbx
        report  %rax
        mmuext  MMUEXT_UNPIN_TABLE, %rbx
        report  %rax""",
        (0, 0, EINVAL),
    ),
    Case(
        "type/pin-twice",
        "do_mmuext_op: already pinned is EINVAL",
        """
        remap   $pages, PAGE_RO
        mfn_of  $pages, %rbx
        mmuext  MMUEXT_PIN_L1_TABLE, %rbx
        mmuext  MMUEXT_PIN_L1_TABLE, %rbx
        report  %rax""",
        (EINVAL,),
    ),
    Case(
        "type/pin-as-other-level",
        "get_page_type: a pinned L1 cannot be an L2: EINVAL",
        """
        remap   $pages, PAGE_RO
        mfn_of  $pages, %rbx
        mmuext  MMUEXT_PIN_L1_TABLE, %rbx
        mmuext  MMUEXT_PIN_L2_TABLE, %rbx
        report  %rax""",
        (EINVAL,),
    ),
    Case(
        "type/pinned-not-writable",
        "get_page_from_l1e: a pinned table cannot be mapped writable: EBUSY",
        """
        remap   $pages, PAGE_RO
        mfn_of  $pages, %rbx
        mmuext  MMUEXT_PIN_L1_TABLE, %rbx
        remap   $pages, PAGE_RW
        report  %rax""",
        (EBUSY,),
    ),
    Case(
        "type/pin-validates",
        "alloc_l1_table: an entry that may not be makes the pin fail",
        """
        movq    $0x10063, pages
        remap   $pages, PAGE_RO
        mfn_of  $pages, %rbx
        mmuext  MMUEXT_PIN_L1_TABLE, %rbx
        test    %rax, %rax
        sets    %al
        movzbl  %al, %eax
        report  %rax""",
        (1,),
    ),
    Case(
        "type/pin-xen-frame",
        "get_page_from_gfn: not the domain's: EINVAL",
        "mmuext MMUEXT_PIN_L1_TABLE, $0x10\n report %rax",
        (EINVAL,),
    ),
    Case(
        "type/unpin-plain",
        "do_mmuext_op: not pinned is EINVAL",
        "mfn_of $pages, %rbx\n mmuext MMUEXT_UNPIN_TABLE, %rbx\n report %rax",
        (EINVAL,),
    ),
]
_L2 = "mov l4, %rbx\n add $2*4096+8*16, %rbx\n maddr_of %rbx, %rbp"
_L3 = "mov l4, %rbx\n add $4096+8*16, %rbx\n maddr_of %rbx, %rbp"
_L4 = "mov l4, %rbx\n add $8*16, %rbx\n maddr_of %rbx, %rbp"
_SELF = "mfn_of l4, %rcx\n shl $12, %rcx"
_RESERVED = "mov l4, %rbx\n add $8*256, %rbx\n maddr_of %rbx, %rbp"
LEVELS = [
    Case("level/l2-superpage", "XSA-148: PSE in an L2 entry is EINVAL (L2_DISALLOW_MASK)",
         f"{_L2}\n mmu_update %rbp, $0x10000e7\n report %rax", (EINVAL,)),
    Case("level/l3-superpage", "PSE in an L3 entry is EINVAL",
         f"{_L3}\n mmu_update %rbp, $0x40000e7\n report %rax", (EINVAL,)),
    Case("level/l4-recursive-writable", "XSA-182: a writable L4 entry for the L4 itself is EINVAL",
         f"{_L4}\n {_SELF}\n or $TABLE_RW, %rcx\n mmu_update %rbp, %rcx\n report %rax",
         (EINVAL,)),
    Case("level/l4-recursive-read-only", "get_l4_linear_pagetable: read-only is allowed",
         f"{_L4}\n {_SELF}\n or $0x65, %rcx\n mmu_update %rbp, %rcx\n report %rax", (0,)),
    Case("level/l4-made-writable", "XSA-182: a read-only recursive entry cannot be made writable",
         f"""{_L4}\n {_SELF}\n or $0x65, %rcx\n mmu_update %rbp, %rcx
         {_SELF}\n or $TABLE_RW, %rcx\n mmu_update %rbp, %rcx\n report %rax""", (EINVAL,)),
    Case("level/l4-xen-slot", "mod_l4_entry: the hypervisor's slots are EINVAL",
         f"{_RESERVED}\n mmu_update %rbp, $0\n report %rax", (EINVAL,)),
    Case("level/l4-xen-slot-by-write", "the same by a write: #PF",
         """mov l4, %rbx\n expecting @after\n movq $0, 8*256(%rbx)
         @after: report trap_vector""", (14,)),
    Case("level/l2-of-plain-page", "an L2 entry for a page that is mapped writable: no L1 table",
         f"{_L2}\n entry_for $pages, TABLE_RW, %rcx\n mmu_update %rbp, %rcx\n report %rax",
         (EINVAL,)),
    Case("level/l2-of-l4", "get_page_type: an L2 entry for an L4 is an error",
         f"""{_L2}\n {_SELF}\n or $TABLE_RW, %rcx\n mmu_update %rbp, %rcx
         test %rax, %rax\n sets %al\n movzbl %al, %eax\n report %rax""", (1,)),
    Case("level/new-table", "a page that becomes an L1 table of its own, and maps something",
         f"""movq $333, pages+4096
         entry_for $pages+4096, PAGE_RW, %rcx
         mov %rcx, pages
         remap $pages, PAGE_RO
         {_L2}
         entry_for $pages, TABLE_RW, %rcx
         mmu_update %rbp, %rcx
         report %rax
         report 0xffffffff82000000""", (0, 333)),
]  # fmt: skip

MMUEXT = [
    Case("mmuext/unknown", "do_mmuext_op: ENOSYS", "mmuext 99\n report %rax", (ENOSYS,)),
    Case("mmuext/list-fault", "EFAULT",
         "result_of mmuext_op, $NOT_MAPPED, $1, $0, $DOMID_SELF", (EFAULT,)),
    Case("mmuext/foreign", "ESRCH", "result_of mmuext_op, $operation, $0, $0, $999", (ESRCH,)),
    Case("mmuext/flush_cache", "no device memory: EACCES",
         "mmuext MMUEXT_FLUSH_CACHE\n report %rax", (EACCES,)),
    Case("mmuext/flush-local", "0", "mmuext MMUEXT_TLB_FLUSH_LOCAL\n report %rax", (0,)),
    Case("mmuext/flush-all", "0", "mmuext MMUEXT_TLB_FLUSH_ALL\n report %rax", (0,)),
    Case("mmuext/invlpg-anywhere", "any address: 0",
         "movabs $NON_CANONICAL, %rbx\n mmuext MMUEXT_INVLPG_ALL, %rbx\n report %rax", (0,)),
    Case("mmuext/multi-fault", "vcpumask_to_pcpumask: a mask that cannot be read is EINVAL",
         "mmuext MMUEXT_TLB_FLUSH_MULTI, $0, $NOT_MAPPED\n report %rax", (EINVAL,)),
    Case("mmuext/multi", "0",
         "mmuext MMUEXT_TLB_FLUSH_MULTI, $0, $@m\n report %rax", (0,), "@m: .quad 1"),
    Case("mmuext/clear", "MMUEXT_CLEAR_PAGE",
         "movq $5, pages\n mfn_of $pages, %rbx\n mmuext MMUEXT_CLEAR_PAGE, %rbx\n report %rax\n"
         " report pages", (0, 0)),
    Case("mmuext/copy", "MMUEXT_COPY_PAGE: arg1 is the destination",
         f"{_TWO_PAGES}\n mfn_of $pages, %rbx\n mfn_of $pages+4096, %rbp\n"
         " mmuext MMUEXT_COPY_PAGE, %rbx, %rbp\n report %rax\n report pages", (0, 222)),
    Case("mmuext/clear-table", "a page table cannot be cleared: EINVAL",
         "mfn_of l4, %rbx\n mmuext MMUEXT_CLEAR_PAGE, %rbx\n report %rax", (EINVAL,)),
    Case("mmuext/copy-to-table", "nor be copied to: EINVAL",
         "mfn_of l4, %rbx\n mfn_of $pages, %rbp\n mmuext MMUEXT_COPY_PAGE, %rbx, %rbp\n"
         " report %rax", (EINVAL,)),
    Case("mmuext/clear-l1-table", "XSA: an L1 table that is in use cannot be cleared: EINVAL",
         "mfn_of first_l1, %rbx\n mmuext MMUEXT_CLEAR_PAGE, %rbx\n report %rax", (EINVAL,)),
    Case("mmuext/copy-from-xen", "a frame of Xen's cannot be read: EINVAL",
         "mfn_of $pages, %rbx\n mmuext MMUEXT_COPY_PAGE, %rbx, $0x11\n report %rax", (EINVAL,)),
    Case("mmuext/clear-shared-info", "shared_info is Xen's page: EINVAL",
         "mmuext MMUEXT_CLEAR_PAGE, $0x10\n report %rax", (EINVAL,)),
    Case("mmuext/baseptr", "the same table again: 0",
         "mfn_of l4, %rbx\n mmuext MMUEXT_NEW_BASEPTR, %rbx\n report %rax", (0,)),
    Case("mmuext/baseptr-xen", "a frame of Xen's: EINVAL",
         "mmuext MMUEXT_NEW_BASEPTR, $0x10\n report %rax", (EINVAL,)),
    Case("mmuext/baseptr-plain", "a page that is mapped writable cannot be an L4: EINVAL",
         "mfn_of $pages, %rbx\n mmuext MMUEXT_NEW_BASEPTR, %rbx\n report %rax", (EINVAL,)),
    Case("mmuext/user-baseptr-plain", "nor one for user mode: EINVAL",
         "mfn_of $pages, %rbx\n mmuext MMUEXT_NEW_USER_BASEPTR, %rbx\n report %rax", (EINVAL,)),
    Case("mmuext/user-baseptr-xen", "EINVAL",
         "mmuext MMUEXT_NEW_USER_BASEPTR, $0x10\n report %rax", (EINVAL,)),
    Case("mmuext/baseptr-new", "a copy of the L4 that is mapped read-only works as one",
         """mov l4, %rsi\n mov $pages, %rdi\n mov $512, %ecx\n cld\n rep movsq
         movq $0, pages+8*256\n movq $0, pages+8*260
         remap $pages, PAGE_RO
         mfn_of $pages, %rbx\n mmuext MMUEXT_PIN_L4_TABLE, %rbx\n report %rax
         mmuext MMUEXT_NEW_BASEPTR, %rbx\n report %rax\n movq $9, pages+4096
         report pages+4096""", (0, 0, 9)),
    Case("mov-cr3/same", "pv/emul-priv-op.c write_cr: CR3 by instruction",
         "mfn_of l4, %rax\n shl $12, %rax\n mov %rax, %cr3\n mov %cr3, %rcx\n sub %rcx, %rax\n"
         " report %rax", (0,)),
    Case("mov-cr3/xen-frame", "a frame of Xen's: #GP",
         "mov $0x10000, %eax\n expecting @after\n mov %rax, %cr3\n@after: report_trap", (13, 0)),
]  # fmt: skip

CASES = WRITES + UPDATES + REFUSED + TYPES + LEVELS + MMUEXT
