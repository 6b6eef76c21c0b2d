/* The instrument at the other end of the serial benchmarks: on the pty master whose number is its argument it answers
   every line with a line of 40 bytes. Other bytes it swallows. It ends when the last client of the pty is gone. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
  char got[4096], reply[40];
  int master = argc > 1 ? atoi(argv[1]) : 0;
  ssize_t count;
  memset(reply, 'r', sizeof reply - 1);
  reply[sizeof reply - 1] = '\n';
  while ((count = read(master, got, sizeof got)) > 0)
    for (const char *at = got; (at = memchr(at, '\n', got + count - at)) != NULL; at++)
      if (write(master, reply, sizeof reply) != sizeof reply)
        return 1;
  return 0;
}
