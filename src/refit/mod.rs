//! A refit: new weights into a running model. `many` is one call on many weights; the rest is the plan, which knows the
//! parameters by name, what fills them, and what is still missing.

mod accounting;
mod fingerprint;
mod items;
mod many;
mod measure;
mod missing;
mod model;
mod plan;

pub use items::{Item, Items};
pub use many::{Entries, Entry, Manner, OwnedEntries, SOURCES, name_entry, staging_bytes};
pub use model::{Destination, DestinationSpec, Fp8, KEPT_BYTES, Model, Named, Region, RegionSpec, Source, Window};
pub use plan::{Receipt, Refit, State};
