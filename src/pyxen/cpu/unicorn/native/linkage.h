/* The procedure linkage table of the library that the translator is in. */
#ifndef PYXEN_LINKAGE_H
#define PYXEN_LINKAGE_H

#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>

/* The slot for a function; NULL unless there is exactly one. exit_check.c */
void **find_slot(const struct link_map *map, const char *name);
/* softmmu.c */
const char *install_softmmu(const struct link_map *map, void *library);

#endif
