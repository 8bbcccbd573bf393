//! The resources: one Rust type per kind is the only schema.
