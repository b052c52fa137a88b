//! The process table as `docker top` shows it, read from /proc.
