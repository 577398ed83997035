/* What a process under callgrind may ask callgrind: compiled by instructions.py when it is needed. */
#include <valgrind/callgrind.h>

int is_counted(void) { return RUNNING_ON_VALGRIND; }
void start_counting(void) { CALLGRIND_START_INSTRUMENTATION; }
/* Has callgrind write down what was counted since the last `begin_anew`. */
void write_down(void) { VALGRIND_MONITOR_COMMAND("status internal"); }
void begin_anew(void) { CALLGRIND_ZERO_STATS; }
