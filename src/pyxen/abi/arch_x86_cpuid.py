"""The CPUID leaves by which a guest recognises Xen.

Source: public/arch-x86/cpuid.h. From XEN_CPUID_FIRST_LEAF on, or the next multiple of 0x100:
  +0  EAX last leaf; EBX, ECX, EDX the signature
  +1  EAX version, major << 16 | minor
  +2  EAX number of hypercall pages; EBX the MSR that fills them; ECX, EDX features
  +3  subleaf 0: EAX flags, EBX TSC mode, ECX TSC kHz, EDX TSC incarnation;
      subleaf 1: EAX, EBX offset of the TSC to ns, ECX multiplier, EDX shift (signed);
      subleaf 2: EAX host TSC kHz
  +4  for HVM: EAX the features XEN_HVM_CPUID_*, EBX vCPU number, ECX domid
  +5  for PV, subleaf 0: EBX width of machine addresses
"""

_HEADERS = ("arch-x86/cpuid.h",)

XEN_CPUID_FIRST_LEAF = 0x40000000

# "XenVMMXenVMM"
XEN_CPUID_SIGNATURE_EBX = 0x566E6558
XEN_CPUID_SIGNATURE_ECX = 0x65584D4D
XEN_CPUID_SIGNATURE_EDX = 0x4D4D566E

# Leaf +2, ECX.
XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 << 0

# Leaf +4, EAX.
XEN_HVM_CPUID_APIC_ACCESS_VIRT = 1 << 0
XEN_HVM_CPUID_X2APIC_VIRT = 1 << 1
XEN_HVM_CPUID_IOMMU_MAPPINGS = 1 << 2
XEN_HVM_CPUID_VCPU_ID_PRESENT = 1 << 3
XEN_HVM_CPUID_DOMID_PRESENT = 1 << 4
XEN_HVM_CPUID_EXT_DEST_ID = 1 << 5
XEN_HVM_CPUID_UPCALL_VECTOR = 1 << 6

# Leaf +5, EBX.
XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK = 0xFF
XEN_CPUID_MAX_NUM_LEAVES = 5
