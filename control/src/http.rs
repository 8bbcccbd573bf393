//! Bodies, callers and the handler trait: what the API and the transports share.
