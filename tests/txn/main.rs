//! Nothing is lost: a commit, a recovery and an undo end with the host exactly as before (outside of units that were free) or
//! exactly as it should become, whatever happens on the way; and whatever does not belong together is refused.

mod case;
mod crash;
mod journal;
#[path = "../common/machine.rs"]
mod machine;
mod moves;
mod refusals;
