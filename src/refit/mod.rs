//! A refit: new weights into a running model. `many` is one call on many weights; the rest is the plan, which knows the
//! parameters by name, what fills them, and what is still missing.

mod accounting;
mod many;
mod model;

pub use accounting::Accounting;
pub use many::{Entries, Entry, Manner, OwnedEntries, SOURCES, name_entry};
pub use model::{Destination, DestinationSpec, Fp8, KEPT_BYTES, Model, Named, Region, RegionSpec, Source, Window};
