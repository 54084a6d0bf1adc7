//! Where queues and paths are held, each under an [`Id`] that no other one ever has: what is asked for by the id of one that is gone
//! is not found, even where another has taken its place.

use std::marker::PhantomData;

use slab::Slab;

/// Names one of the values that an arena holds. `M` keeps ids of one kind apart from those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<M> {
    place: u32,
    /// How many values the arena had taken before, modulo 2³²: places are used again.
    born: u32,
    kind: PhantomData<M>,
}

impl<M> Id<M> {
    /// Names nothing.
    pub const NOTHING: Self = Id { place: u32::MAX, born: u32::MAX, kind: PhantomData };

    fn new(place: u32, born: u32) -> Self {
        Id { place, born, kind: PhantomData }
    }

    /// One for tests that have no arena.
    #[cfg(test)]
    pub fn numbered(place: u32) -> Self {
        Id::new(place, 0)
    }

    /// One that was taken when another arena took that one.
    #[cfg(test)]
    pub fn numbered_as<N>(other: Id<N>) -> Self {
        Id::new(other.place, other.born)
    }

    /// The place in the arena. One that comes later may have it.
    pub fn place(self) -> u32 {
        self.place
    }
}

/// Holds values.
#[derive(Debug)]
pub struct Arena<M, T> {
    values: Slab<(u32, T)>,
    born: u32,
    kind: PhantomData<M>,
}

impl<M, T> Default for Arena<M, T> {
    fn default() -> Self {
        Arena { values: Slab::new(), born: 0, kind: PhantomData }
    }
}

impl<M: Copy, T> Arena<M, T> {
    /// Takes a value.
    ///
    /// # Panics
    /// When it holds 2³² values.
    pub fn insert(&mut self, value: T) -> Id<M> {
        let born = self.born;
        self.born = born.wrapping_add(1);
        let place = u32::try_from(self.values.insert((born, value)));
        Id::new(place.expect("fewer than 2³² values fit in memory"), born)
    }

    /// The value, if it is there.
    pub fn get(&self, id: Id<M>) -> Option<&T> {
        self.values.get(id.place as usize).filter(|(born, _)| *born == id.born).map(|(_, value)| value)
    }

    /// The value, if it is there.
    pub fn get_mut(&mut self, id: Id<M>) -> Option<&mut T> {
        self.values.get_mut(id.place as usize).filter(|(born, _)| *born == id.born).map(|(_, value)| value)
    }

    /// Takes a value out, if it is there.
    pub fn remove(&mut self, id: Id<M>) -> Option<T> {
        self.get(id)?;
        self.values.try_remove(id.place as usize).map(|(_, value)| value)
    }

    /// What lies at a place now.
    pub fn at(&self, place: u32) -> Option<(Id<M>, &T)> {
        let (born, value) = self.values.get(place as usize)?;
        Some((Id::new(place, *born), value))
    }

    /// All values in the order of their places, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Id<M>, &mut T)> {
        // Places fit: `insert` has checked.
        self.values.iter_mut().map(|(place, (born, value))| (Id::new(place as u32, *born), value))
    }

    /// All values in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (Id<M>, &T)> {
        // Places fit: `insert` has checked.
        self.values.iter().map(|(place, (born, value))| (Id::new(place as u32, *born), value))
    }

    /// Values that there is memory for.
    pub fn capacity(&self) -> usize {
        self.values.capacity()
    }

    /// Gives memory back.
    pub fn shrink_to_fit(&mut self) {
        self.values.shrink_to_fit();
    }
}

#[cfg(test)]
impl<M: Copy, T> std::ops::Index<Id<M>> for Arena<M, T> {
    type Output = T;

    fn index(&self, id: Id<M>) -> &T {
        self.get(id).expect("it is there")
    }
}

#[cfg(test)]
impl<M: Copy, T> std::ops::IndexMut<Id<M>> for Arena<M, T> {
    fn index_mut(&mut self, id: Id<M>) -> &mut T {
        self.get_mut(id).expect("it is there")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_one_that_is_gone_finds_nothing() {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Kind {}
        let mut arena: Arena<Kind, &str> = Arena::default();
        let (a, b) = (arena.insert("a"), arena.insert("b"));
        assert_eq!((arena.remove(a), arena.remove(a)), (Some("a"), None));
        let c = arena.insert("c");
        assert_eq!((c.place(), c == a), (a.place(), false));
        assert!(arena.get(a).is_none() && arena.get_mut(a).is_none() && arena.remove(a).is_none());
        assert_eq!((arena.get(c), arena.at(c.place()), arena.iter().count()), (Some(&"c"), Some((c, &"c")), 2));
        assert_eq!(arena.iter().collect::<Vec<_>>(), [(c, &"c"), (b, &"b")]);
    }
}
