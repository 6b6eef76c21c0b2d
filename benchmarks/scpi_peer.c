/* The instrument at the other end of the VISA benchmarks. It prints the TCP ports that it listens on, on loopback, as
   many as its argument says. A line with a question mark it answers by a line of 40 bytes, CURV? by a block in which
   every byte occurs, CURV? FLAT by one without line feeds, other lines not at all. A process for each connection, so
   that none waits for another; each ends with its client, and the first one with its standard input. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BLOCK = 4000000 };

static char reply[40], waveform[BLOCK], flat[BLOCK];

static void send_all(int link, const char *data, size_t left) {
  ssize_t count;
  for (; left > 0; data += count, left -= count)
    if ((count = write(link, data, left)) <= 0)
      exit(0);
}

static void answer(int link, const char *line, size_t length) {
  if (length >= 5 && memcmp(line, "CURV?", 5) == 0) {
    send_all(link, "#74000000", 9);
    send_all(link, memchr(line, ' ', length) ? flat : waveform, BLOCK);
    send_all(link, "\n", 1);
  } else if (memchr(line, '?', length) != NULL) {
    send_all(link, reply, sizeof reply);
  }
}

static void serve(int link) {
  char got[4096];
  size_t have = 0;
  ssize_t count;
  while ((count = read(link, got + have, sizeof got - have)) > 0) {
    const char *start = got, *end;
    have += count;
    while ((end = memchr(start, '\n', got + have - start)) != NULL) {
      answer(link, start, end - start);
      start = end + 1;
    }
    have -= start - got;
    memmove(got, start, have);
  }
}

static int listen_on_any_port(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 128) ||
      getsockname(listener, (struct sockaddr *)&address, &size))
    exit(1);
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  return listener;
}

int main(int argc, char **argv) {
  int ports = argc > 1 ? atoi(argv[1]) : 1, on = 1;
  struct pollfd waited[1 + ports];
  memset(reply, 'r', sizeof reply - 1);
  reply[sizeof reply - 1] = '\n';
  memset(flat, 'f', BLOCK);
  for (int at = 0; at < BLOCK; at++)
    waveform[at] = at;
  signal(SIGCHLD, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  waited[0] = (struct pollfd){.fd = 0, .events = POLLIN};
  for (int i = 1; i <= ports; i++)
    waited[i] = (struct pollfd){.fd = listen_on_any_port(), .events = POLLIN};
  while (poll(waited, 1 + ports, -1) > 0 && !waited[0].revents)
    for (int i = 1; i <= ports; i++) {
      int link = waited[i].revents ? accept(waited[i].fd, NULL, NULL) : -1;
      if (link >= 0 && fork() == 0) {
        setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        serve(link);
        return 0;
      }
      close(link);
    }
  return 0;
}
