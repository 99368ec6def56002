//! Names of guests as names that a host can hold.
