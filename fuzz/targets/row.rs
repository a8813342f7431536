//! A row of a claim, of any bytes: refused without a word of its payload, or decoded as it came.
//!
//! The first byte says which table; then, for each column, one byte of length (255: null) and as many bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_core::Origin;
use postrider_postgres::row_on_the_wire::{COLUMNS, decodes_or_is_refused};

fuzz_target!(|data: &[u8]| {
    let Some((which, mut rest)) = data.split_first() else {
        return;
    };
    let origin = match which % 3 {
        0 => Origin::Messages,
        1 => Origin::Deferred,
        _ => Origin::Parked,
    };
    let columns: [Option<Vec<u8>>; COLUMNS] = std::array::from_fn(|_| {
        let (length, bytes) = rest.split_first()?;
        let wanted = match length {
            255 => None,
            length => Some(usize::from(*length).min(bytes.len())),
        };
        let (column, left) = bytes.split_at(wanted.unwrap_or(0));
        rest = left;
        wanted.map(|_| column.to_vec())
    });
    decodes_or_is_refused(&columns, origin);
});
