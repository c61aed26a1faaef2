/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transport_server PORT: lets the tests of test_transport have their server on this host. Each test
 * gets a process of its own. Listens on all addresses: for a network that is ours alone.
 */
#include "tests/unit/transport_server.h"

#include "common/log.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int port = argc == 2 ? atoi(argv[1]) : 0;
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;

	if (port < 1 || port > 65535) {
		fprintf(stderr, "usage: transport_server PORT\n");
		return 2;
	}
	smv_log_set_level(SMV_LOG_ERROR); /* refused accesses are on purpose here */
	signal(SIGCHLD, SIG_IGN);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listener, 8) < 0) {
		perror("transport_server");
		return 1;
	}
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		if (fork() == 0) {
			server_serve(fd);
			return 0;
		}
		close(fd);
	}
	perror("transport_server: accept");
	return 1;
}
