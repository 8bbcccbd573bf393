//! Serving the API over HTTP/3 and TCP.
