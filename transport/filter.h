/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filters: faults as ordinary parts. A filter stands in front of a client connection and behaves
 * like one, so its user cannot tell; filters can be put in front of filters. It owns the connection
 * behind it: closing the filter closes both.
 */
#ifndef SMV_TRANSPORT_FILTER_H
#define SMV_TRANSPORT_FILTER_H

#include "transport/transport.h"

/** smv_conn_filter_delay - each completion is told @delay_ns later; 0 or -ENOMEM, then @inner is
 * still the caller's. */
int smv_conn_filter_delay(struct smv_conn *inner, uint64_t delay_ns, struct smv_conn **conn);

/** smv_conn_filter_error - the @nth completion (1..) becomes the error @errnum (positive), and as
 * with any failed connection the requests behind it are flushed with -ECANCELED and nothing more
 * can be posted. Their memory is really free by then. 0 or -ENOMEM as above. */
int smv_conn_filter_error(struct smv_conn *inner, uint64_t nth, int errnum, struct smv_conn **conn);

#endif
