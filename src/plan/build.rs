//! From guests, host and options to a plan.

use crate::error::{Error, Result};
use crate::fs::host::{Host, HostImage, HostName};
use crate::plan::{GuestVolume, Options, Plan};

/// The plan for writing `guests` below `into` of `host`, out of the units of `image`. Cost follows extents.
///
/// # Errors
/// [`Error::Usage`] where `into` is no name that the host can hold, and what reading the host's directory meets.
pub fn build(
    guests: &[GuestVolume],
    host: &dyn Host,
    image: &HostImage,
    into: &[HostName],
    options: &Options,
) -> Result<Plan> {
    let _ = (guests, host, image, into, options);
    Err(Error::Unsupported("plan".into()))
}
