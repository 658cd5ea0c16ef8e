//! The memory of objects, from one to the next.
//!
//! It comes from the system and not from the C library, which keeps what objects of many sizes leave in pieces that the
//! next one does not fit into. It is used again, as the system clears and maps what it gives anew page by page.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Memory comes in multiples of this, so that objects of much the same size fit into each other's. Pages of it that no
/// object has reached take none.
const STEP: usize = 1 << 20;

/// Most that is kept with no object in it.
const MOST_SPARE: usize = 16 << 20;

/// Memory between two objects, the latest last.
#[derive(Clone, Default)]
pub(super) struct Spare(Arc<Mutex<VecDeque<MmapMut>>>);

/// Memory with an object in it, as far as it has arrived. It is spare again when it is dropped.
pub(super) struct Buffer {
    /// Taken when it is dropped.
    memory: Option<MmapMut>,
    length: usize,
    spare: Spare,
}

impl Spare {
    /// Room for so many bytes, in memory that is about as large or up to twice as large.
    ///
    /// # Errors
    /// When the system has none.
    pub(super) fn take(&self, bytes: usize) -> io::Result<Buffer> {
        let least = bytes.max(1).checked_next_multiple_of(STEP).ok_or(io::ErrorKind::OutOfMemory)?;
        let fits = least..=least.saturating_mul(2);
        let kept = {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let latest = spare.iter().rposition(|kept| fits.contains(&kept.len()));
            latest.and_then(|at| spare.remove(at))
        };
        let memory = kept.map_or_else(|| MmapMut::map_anon(least), Ok)?;
        Ok(Buffer { memory: Some(memory), length: 0, spare: self.clone() })
    }

    fn give_back(&self, memory: MmapMut) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push_back(memory);
        // Sizes that do not come any more go first.
        while spare.iter().map(|kept| kept.len()).sum::<usize>() > MOST_SPARE {
            spare.pop_front();
        }
    }
}

impl Buffer {
    /// How much of an object is in it.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Adds what has arrived, or says that there is no room for it.
    pub(super) fn push(&mut self, chunk: &[u8]) -> bool {
        let end = self.length + chunk.len();
        let Some(room) = self.memory.as_deref_mut().and_then(|memory| memory.get_mut(self.length..end)) else {
            return false;
        };
        room.copy_from_slice(chunk);
        self.length = end;
        true
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_deref().map_or(&[], |memory| &memory[..self.length])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.spare.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where an object of this size was.
    fn object(spare: &Spare, bytes: usize) -> *const u8 {
        let mut buffer = spare.take(bytes).unwrap();
        assert_eq!(buffer.len(), 0);
        assert!(buffer.push(&vec![1; bytes]));
        buffer.as_ref().as_ptr()
    }

    fn kept(spare: &Spare) -> Vec<usize> {
        spare.0.lock().unwrap().iter().map(|kept| kept.len() / STEP).collect()
    }

    #[test]
    fn objects_of_much_the_same_size_have_the_same_memory() {
        let spare = Spare::default();
        let place = object(&spare, 4 * STEP - 1);
        for bytes in [4 * STEP - 1000, 4 * STEP, 2 * STEP, 4 * STEP] {
            assert_eq!(object(&spare, bytes), place, "{bytes}");
        }
        assert_eq!(kept(&spare), [4]);
        let _one = spare.take(4 * STEP).unwrap();
        assert!(kept(&spare).is_empty(), "of two at a time each has its own");
        assert_ne!(object(&spare, 4 * STEP), place);
    }

    #[test]
    fn a_small_object_holds_no_large_memory() {
        let spare = Spare::default();
        object(&spare, 3 * STEP);
        let _small = [0, 1, STEP].map(|bytes| spare.take(bytes).unwrap());
        assert_eq!(kept(&spare), [3]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_came_last_stays() {
        let spare = Spare::default();
        object(&spare, MOST_SPARE + 1);
        assert!(kept(&spare).is_empty());
        object(&spare, 3 * STEP);
        drop([7 * STEP, 7 * STEP].map(|bytes| spare.take(bytes).unwrap()));
        assert_eq!(kept(&spare), [7, 7]);
    }

    #[test]
    fn an_object_is_what_was_pushed_and_nothing_of_the_one_before_it() {
        let spare = Spare::default();
        object(&spare, 1000);
        let mut buffer = spare.take(2 * STEP).unwrap();
        assert!(buffer.push(b"ab") && buffer.push(b"") && buffer.push(b"c"));
        assert_eq!(buffer.as_ref(), b"abc");
        assert!(!buffer.push(&vec![0; 2 * STEP]), "there is no room for that");
        assert_eq!(buffer.as_ref(), b"abc");
        let mut again = {
            drop(buffer);
            spare.take(STEP).unwrap()
        };
        assert!(again.as_ref().is_empty());
        assert!(again.push(b"d"));
        assert_eq!(again.as_ref(), b"d");
    }

    #[test]
    fn more_than_there_is_is_an_error() {
        assert!(Spare::default().take(usize::MAX).is_err());
        assert!(Spare::default().take(usize::MAX / 4).is_err());
    }
}
