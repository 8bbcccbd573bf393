//! The store: SQLite, one writer, one revision counter.
