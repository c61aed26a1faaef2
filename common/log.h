/* SPDX-License-Identifier: Apache-2.0 */
/* The one logger: a line to standard error, "TIME LEVEL program: text". Any thread may call it. */
#ifndef SMV_COMMON_LOG_H
#define SMV_COMMON_LOG_H

enum smv_log_level { SMV_LOG_ERROR, SMV_LOG_WARNING, SMV_LOG_INFO, SMV_LOG_DEBUG };

/** smv_log_set_level - lines above @level are dropped. The default is SMV_LOG_INFO. */
void smv_log_set_level(enum smv_log_level level);

/** smv_log_level_parse - "error", "warning", "info", "debug"; -EINVAL otherwise. */
int smv_log_level_parse(const char *text, enum smv_log_level *level);

void smv_log(enum smv_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define smv_log_error(...) smv_log(SMV_LOG_ERROR, __VA_ARGS__)
#define smv_log_warning(...) smv_log(SMV_LOG_WARNING, __VA_ARGS__)
#define smv_log_info(...) smv_log(SMV_LOG_INFO, __VA_ARGS__)
#define smv_log_debug(...) smv_log(SMV_LOG_DEBUG, __VA_ARGS__)

#endif
