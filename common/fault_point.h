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
 */
#ifndef SMV_COMMON_FAULT_POINT_H
#define SMV_COMMON_FAULT_POINT_H

#include <stdbool.h>

#ifdef SMEMV_FAULT_POINTS
bool smv_fault_point(const char *name);
#else
#define smv_fault_point(name) false
#endif

#endif
