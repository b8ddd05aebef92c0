//! A list that only grows, and is read without a lock: a forked child reads it, too, in whatever state
//! the fork caught it.

use std::sync::OnceLock;

/// See the module's description.
pub struct Chain<T> {
    first: OnceLock<Box<Link<T>>>,
}

struct Link<T> {
    value: T,
    next: OnceLock<Box<Link<T>>>,
}

impl<T> Default for Chain<T> {
    fn default() -> Self {
        Self { first: OnceLock::new() }
    }
}

impl<T> Chain<T> {
    /// Appends a value. Of two threads that do so at once, both do, in some order.
    pub fn push(&self, value: T) {
        let mut end = &self.first;
        let mut link = Box::new(Link { value, next: OnceLock::new() });
        loop {
            while let Some(taken) = end.get() {
                end = &taken.next;
            }
            match end.set(link) {
                Ok(()) => return,
                Err(ours) => link = ours,
            }
        }
    }

    /// All values, in the order in which they were appended.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let links = std::iter::successors(self.first.get(), |link| link.next.get());
        links.map(|link| &link.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_many_append_at_once() {
        let chain = Chain::default();
        std::thread::scope(|scope| {
            for base in [0, 100, 200, 300] {
                let chain = &chain;
                scope.spawn(move || (base..base + 100).for_each(|number| chain.push(number)));
            }
        });
        let mut found: Vec<i32> = chain.iter().copied().collect();
        found.sort_unstable();
        assert_eq!(found, (0..400).collect::<Vec<_>>());
    }
}
