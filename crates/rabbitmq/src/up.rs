//! The positions of a batch that may be sent now.
//!
//! A flag for each, and no set that is ordered by comparing: a batch of messages without a key begins with all of them.

/// Positions, in order.
pub(crate) struct Up {
    flags: Vec<bool>,
    /// None is before this.
    first: usize,
    count: usize,
}

impl Up {
    /// Those of so many positions for which `is_up` holds.
    pub(crate) fn new(positions: usize, is_up: impl Fn(usize) -> bool) -> Self {
        let flags: Vec<bool> = (0..positions).map(is_up).collect();
        let count = flags.iter().filter(|up| **up).count();
        Self {
            flags,
            first: 0,
            count,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn contains(&self, position: usize) -> bool {
        self.flags.get(position).copied().unwrap_or(false)
    }

    pub(crate) fn insert(&mut self, position: usize) {
        if let Some(up) = self.flags.get_mut(position)
            && !*up
        {
            *up = true;
            self.count += 1;
            self.first = self.first.min(position);
        }
    }

    pub(crate) fn remove(&mut self, position: usize) {
        if let Some(up) = self.flags.get_mut(position)
            && *up
        {
            *up = false;
            self.count -= 1;
        }
        while self.first < self.flags.len() && !self.contains(self.first) {
            self.first += 1;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        let flags = self.flags.iter().enumerate().skip(self.first);
        flags
            .filter(|(_, up)| **up)
            .map(|(position, _)| position)
            .take(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::Up;

    #[test]
    fn positions_come_in_order_however_they_came_and_went() {
        let mut up = Up::new(6, |position| position % 2 == 0);
        let shown = |up: &Up| up.iter().collect::<Vec<_>>();
        assert_eq!((shown(&up), up.len()), (vec![0, 2, 4], 3));
        up.remove(0);
        up.remove(2);
        up.remove(2);
        assert_eq!((shown(&up), up.len()), (vec![4], 1));
        up.insert(1);
        up.insert(1);
        up.insert(5);
        up.insert(9);
        assert_eq!((shown(&up), up.len()), (vec![1, 4, 5], 3));
        for position in [4, 1, 5] {
            up.remove(position);
        }
        assert!(shown(&up).is_empty() && !up.contains(5));
    }
}
