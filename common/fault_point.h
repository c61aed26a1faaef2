/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named places where a test may inject a failure. They exist in test builds only
 * (-DSMEMV_FAULT_POINTS=ON); elsewhere smv_fault_point() is the constant false and its name is in
 * no binary.
 *
 * SMEMV_FAULT is a comma-separated list of NAME[:ACTION[:N]]: at the N-th hit (default: every hit)
 * of point NAME do ACTION:
 *   skip   smv_fault_point() returns true: the code leaves out the step (default)
 *   kill   the process ends by SIGKILL
 *   stop   the process stops by SIGSTOP
 *   wait   the process writes the file $SMEMV_FAULT_DIR/NAME.reached and goes on when
 *          $SMEMV_FAULT_DIR/NAME.go exists (or, so that nothing hangs for ever, after 120 s)
 *   arm    nothing, until the file $SMEMV_FAULT_DIR/NAME.arm is there: then what it says (one of the
 *          above), once; it is removed. For daemons that live through many tests
 *
 * SMEMV_FAULT_HITS is a directory: whenever one of the actions is done at point NAME, the file NAME
 * is made there. So a test run can tell which points it never used.
 */
#ifndef SMV_COMMON_FAULT_POINT_H
#define SMV_COMMON_FAULT_POINT_H

#include <stdbool.h>

#ifdef SMEMV_FAULT_POINTS
#include <stdio.h>

/* Each place leaves a pointer to its name, which has to be a literal, in a section of its own: the
 * linker collects them, so no list is kept by hand. */
#define smv_fault_point(name)                                                                      \
	__extension__({                                                                            \
		static const char *const smv_point                                                 \
			__attribute__((section("smemv_fault_points"), used)) = "" name;            \
		smv_fault_point_passed(smv_point);                                                 \
	})

bool smv_fault_point_passed(const char *name);
/** smv_fault_points_list - the names of all points of this program, one per line, sorted. */
void smv_fault_points_list(FILE *out);
#else
#define smv_fault_point(name) false
#endif

#endif
