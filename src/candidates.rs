//! Those whom sentinels name as the primary: tried one after the other, until one says that it is.
//!
//! Any trouble leads on to the next. When there is none left, this is told:
//!
//! | what the candidates did | to a client that never was connected | to one that was |
//! |---|---|---|
//! | none refused us | not ready | not ready |
//! | whom most sentinels name refused us, and so did the others | refused | refused |
//! | whom most sentinels name refused us, another was not there | refused | not ready |
//! | whom few sentinels name refused us, and so did the others | refused | not ready |
//! | whom few sentinels name refused us, another was not there | not ready | not ready |
//!
//! "Not ready" is asked again as long as there is time; "refused" is told at once. A client that was
//! connected has credentials that are right: it takes more than one sentinel's word, or more than one moment in
//! the middle of a fail-over, to say that they are not.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::connect::Trouble;
use crate::error::Error;
use crate::settings::{Address, Service};

/// A server that sentinels name as the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub address: Address,
    /// The number of the fail-over that has made it the primary.
    pub epoch: u64,
    /// Most sentinels name it, with that number.
    pub by_most: bool,
    /// The sentinels begin to count anew: it comes after the primary of this larger number.
    pub instead_of: Option<u64>,
}

impl Candidate {
    /// Whether it has taken the place of `other`.
    pub fn replaces(&self, other: &Self) -> bool {
        // Of whom nobody tells the number, all have the same.
        let later = self.epoch > other.epoch || (self.epoch, other.epoch) == (0, 0);
        later && self.address != other.address
    }
}

/// See the module's description.
pub struct Candidates {
    service: Arc<Service>,
    rest: VecDeque<Candidate>,
    /// The one that is being tried.
    at: Option<Candidate>,
    refused: Option<Error>,
    /// Whether one that most sentinels name is among those who refused.
    surely: bool,
    passing: Vec<String>,
}

impl Candidates {
    /// None of them was tried.
    pub fn new(service: &Arc<Service>, rest: VecDeque<Candidate>) -> Self {
        let (at, refused, surely, passing) = Default::default();
        Self { service: Arc::clone(service), rest, at, refused, surely, passing }
    }

    /// Where to go now, if anybody is left.
    pub fn next(&mut self) -> Option<Address> {
        self.at = self.rest.pop_front();
        self.at.as_ref().map(|candidate| candidate.address.clone())
    }

    /// The one that is being tried, or was the last one.
    pub fn at(&self) -> Option<&Candidate> {
        self.at.as_ref()
    }

    /// The one that is being tried is not it.
    pub fn fails(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Unreachable(why) | Trouble::NotReady(why) => self.passing.push(why),
            Trouble::Refused(error) => {
                self.surely |= self.at.as_ref().is_some_and(|candidate| candidate.by_most);
                if matches!(error, Error::NoLogin(_)) {
                    // No fault of the server's, and the next one would hear the same.
                    self.rest.clear();
                    self.passing.clear();
                    self.surely = true;
                }
                self.refused.get_or_insert(error);
            }
        }
    }

    /// Why it was none of them.
    pub fn failure(&mut self) -> Trouble {
        let mut passing = std::mem::take(&mut self.passing);
        if let Some(refused) = self.refused.take() {
            let all = passing.is_empty();
            let known = self.service.newest.is_met();
            if if known { all && self.surely } else { all || self.surely } {
                return Trouble::Refused(refused);
            }
            passing.push(refused.words());
        }
        Trouble::NotReady(passing.join("; "))
    }

    /// The one that was tried has let us in, and perhaps says itself that it is the primary. Then none of
    /// an older fail-over will do any more; and it itself will not, if a newer one was met meanwhile.
    pub fn found(&self, says_so: bool) -> Result<(), Trouble> {
        let Some(Candidate { epoch, instead_of, .. }) = &self.at else { return Ok(()) };
        let newest = &self.service.newest;
        if says_so && !newest.confirm(*epoch, *instead_of) {
            let words = "another has taken its place meanwhile".to_owned();
            return Err(Trouble::NotReady(words));
        }
        newest.meet();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Newest;

    fn service() -> Arc<Service> {
        let (sentinels, tls, username, password) = Default::default();
        let (name, newest) = ("mymaster".to_owned(), Newest::default());
        Arc::new(Service { name, sentinels, tls, username, password, newest })
    }

    fn candidate(epoch: u64, by_most: bool) -> Candidate {
        let address = Address::Tcp("10.0.0.1".to_owned(), 6379);
        Candidate { address, epoch, by_most, instead_of: None }
    }

    fn refused() -> Trouble {
        Trouble::Refused(Error::Authentication("WRONGPASS".to_owned()))
    }

    fn silent() -> Trouble {
        Trouble::NotReady("silent".to_owned())
    }

    #[test]
    fn what_is_told_of_refusals_is_as_in_the_table() {
        type Case = (Vec<(bool, fn() -> Trouble)>, bool, bool);
        let cases: [Case; 9] = [
            (vec![(true, silent)], false, false),
            (vec![(true, refused)], true, true),
            (vec![(false, refused), (true, refused)], true, true),
            (vec![(false, silent), (true, refused)], true, false),
            (vec![(false, refused)], true, false),
            (vec![(false, refused), (true, silent)], false, false),
            (vec![(false, silent), (true, silent)], false, false),
            (vec![(true, silent), (false, refused)], false, false),
            (vec![(true, refused), (false, silent)], true, false),
        ];
        for (tried, to_a_new_one, to_a_known_one) in cases {
            for (known, expected) in [(false, to_a_new_one), (true, to_a_known_one)] {
                let service = service();
                if known {
                    service.newest.meet();
                }
                let rest = tried.iter().map(|(by_most, _)| candidate(1, *by_most)).collect();
                let mut candidates = Candidates::new(&service, rest);
                for (_, trouble) in &tried {
                    assert!(candidates.next().is_some());
                    candidates.fails(trouble());
                }
                let told = candidates.failure();
                assert_eq!(matches!(told, Trouble::Refused(_)), expected, "{told:?}, {known}");
            }
        }
    }

    #[test]
    fn an_epoch_is_confirmed_by_nobody_but_the_primary() {
        let service = service();
        let tried = |epoch, instead_of| {
            let rest = [Candidate { instead_of, ..candidate(epoch, true) }].into();
            let mut candidates = Candidates::new(&service, rest);
            candidates.next();
            candidates
        };
        tried(9, None).fails(silent());
        tried(9, None).found(false).expect("it may be one that does not tell its role");
        assert_eq!(service.newest.epoch(), 0);
        tried(2, None).found(true).expect("a primary");
        assert_eq!(service.newest.epoch(), 2);
        // Asked for before the other was found.
        assert!(matches!(tried(1, None).found(true), Err(Trouble::NotReady(_))));
        assert!(matches!(tried(0, Some(1)).found(true), Err(Trouble::NotReady(_))));
        assert_eq!(service.newest.epoch(), 2);
        tried(0, Some(2)).found(true).expect("those who count anew are believed");
        assert_eq!(service.newest.epoch(), 0);
    }
}
