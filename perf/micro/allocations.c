/* Counts what Python asks its allocators for: hooks around all three domains (raw, mem, obj), and a loop in C, so
   that the counting itself allocates nothing. Loaded by allocations.py; knows nothing of adcore. */

#include <Python.h>
#include <stdatomic.h>

static const PyMemAllocatorDomain domains[] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static PyMemAllocatorEx real[3];

/* Atomic, because other threads (the log writer's) are counted too, and raw memory is had without the GIL. */
static atomic_int counting;
static atomic_ullong blocks, bytes;

/* pymalloc takes what is larger than 512 bytes from the raw domain: one request all the same. */
static _Thread_local int inside;

static void note(size_t size)
{
    if (inside == 0 && atomic_load_explicit(&counting, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&blocks, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&bytes, size, memory_order_relaxed);
    }
}

static void *note_malloc(void *of, size_t size)
{
    PyMemAllocatorEx *to = of;
    note(size);
    inside++;
    void *block = to->malloc(to->ctx, size);
    inside--;
    return block;
}

static void *note_calloc(void *of, size_t count, size_t size)
{
    PyMemAllocatorEx *to = of;
    note(count * size);
    inside++;
    void *block = to->calloc(to->ctx, count, size);
    inside--;
    return block;
}

static void *note_realloc(void *of, void *old, size_t size)
{
    PyMemAllocatorEx *to = of;
    note(size);
    inside++;
    void *block = to->realloc(to->ctx, old, size);
    inside--;
    return block;
}

static void pass_free(void *of, void *block)
{
    PyMemAllocatorEx *to = of;
    to->free(to->ctx, block);
}

/* Once per process, and for its rest. */
void install_hooks(void)
{
    for (int i = 0; i < 3; i++) {
        PyMem_GetAllocator(domains[i], &real[i]);
        PyMemAllocatorEx hook = {&real[i], note_malloc, note_calloc, note_realloc, pass_free};
        PyMem_SetAllocator(domains[i], &hook);
    }
}

/* counts: blocks, bytes */
int count_calls(PyObject *callable, Py_ssize_t times, unsigned long long *counts)
{
    int status = 0;
    atomic_store(&blocks, 0);
    atomic_store(&bytes, 0);
    atomic_store(&counting, 1);
    for (Py_ssize_t i = 0; i < times && status == 0; i++) {
        PyObject *result = PyObject_CallNoArgs(callable);
        if (result == NULL)
            status = -1;
        Py_XDECREF(result);
    }
    atomic_store(&counting, 0);
    counts[0] = atomic_load(&blocks);
    counts[1] = atomic_load(&bytes);
    return status;
}
