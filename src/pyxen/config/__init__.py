"""xl.cfg: from a configuration file to a typed DomainConfig, and to xl's JSON.

lexer → parser → load (schema; boot, resources, hvm, device_lists) → DomainConfig → json_output

Nothing is imported here: `xl block-attach` needs disks only, and all of it takes a while.
"""
