//! Which units are taken: first claimant wins.
