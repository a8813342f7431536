//! The keys of a claim's rows.

/// The ordering keys of the rows that have one, by their places. Sorted, and not hashed: every message with a key has its entry here, and
/// few claims ever ask for any.
#[derive(Debug, Default)]
pub(crate) struct KeysOfRows(Vec<(i64, String)>);

impl KeysOfRows {
    pub(crate) fn new(mut keys: Vec<(i64, String)>) -> Self {
        keys.sort_unstable_by_key(|(seq, _)| *seq);
        Self(keys)
    }

    pub(crate) fn get(&self, seq: i64) -> Option<&str> {
        let at = self.0.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        self.0.get(at).map(|(_, key)| key.as_str())
    }

    /// In the order of their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &str)> {
        self.0.iter().map(|(seq, key)| (*seq, key.as_str()))
    }
}
