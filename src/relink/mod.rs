//! Carries a plan out on an unmounted host.
