/* Prints the effective user id. In its image it is owned by root and setuid: a process of uid 1000 that runs it sees 0,
 * or 1000 where no_new_privs is set (prctl(2)). */
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
