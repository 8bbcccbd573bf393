//! Tests of the API, through its handler.
