//! Jobs (`x-job`) that have mail in a shard. Mail without one is the job of empty name.

use std::rc::Rc;

use ipc::dice::{HashMap, HashSet};
use slab::Slab;

/// Number of a job within its shard, as long as it has mail.
pub type JobId = u32;

/// A job.
#[derive(Debug)]
pub struct Job {
    /// As given.
    pub name: Rc<str>,
    /// Recipients queued.
    pub recipients: u64,
    /// Bytes of content queued, once a message.
    pub bytes: u64,
    /// An operator paused it.
    pub paused: bool,
    messages: u64,
}

/// All jobs of a shard that have mail, and those that are paused.
#[derive(Debug, Default)]
pub struct Jobs {
    all: Slab<Job>,
    by_name: HashMap<Rc<str>, JobId>,
    paused: HashSet<String>,
    /// Paused jobs that have mail.
    stopped: usize,
}

impl Jobs {
    /// A message of a job came.
    pub fn join(&mut self, name: &str, recipients: u64, bytes: u64) -> JobId {
        let id = match self.by_name.get(name) {
            Some(id) => *id,
            None => {
                let name: Rc<str> = Rc::from(name);
                let paused = self.paused.contains(&*name);
                self.stopped += usize::from(paused);
                let job = Job { name: Rc::clone(&name), recipients: 0, bytes: 0, paused, messages: 0 };
                let id = self.all.insert(job) as JobId;
                self.by_name.insert(name, id);
                id
            }
        };
        if let Some(j) = self.all.get_mut(id as usize) {
            (j.messages, j.recipients, j.bytes) = (j.messages + 1, j.recipients + recipients, j.bytes + bytes);
        }
        id
    }

    /// Recipients of it ended; with the last of a message its content goes as well.
    pub fn leave(&mut self, id: JobId, recipients: u64, last_of: Option<u64>) {
        let Some(j) = self.all.get_mut(id as usize) else { return };
        j.recipients = j.recipients.saturating_sub(recipients);
        let Some(bytes) = last_of else { return };
        (j.messages, j.bytes) = (j.messages.saturating_sub(1), j.bytes.saturating_sub(bytes));
        if j.messages == 0 {
            self.stopped -= usize::from(j.paused);
            let j = self.all.remove(id as usize);
            self.by_name.remove(&j.name);
        }
    }

    /// Whether mail of a job may go.
    pub fn may_go(&self, id: JobId) -> bool {
        self.stopped == 0 || !self.all.get(id as usize).is_some_and(|j| j.paused)
    }

    /// Names of jobs that are paused.
    pub fn paused(&self) -> impl Iterator<Item = &str> {
        self.paused.iter().map(String::as_str)
    }

    /// Takes the names of jobs that are paused.
    pub fn set_paused(&mut self, names: impl IntoIterator<Item = String>) {
        self.paused = names.into_iter().collect();
        for (_, j) in &mut self.all {
            j.paused = self.paused.contains(&*j.name);
        }
        self.stopped = self.all.iter().filter(|(_, j)| j.paused).count();
    }

    /// Those that have mail.
    pub fn iter(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.all.iter().map(|(id, j)| (id as JobId, j))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_known_as_long_as_it_has_mail_and_paused_for_longer() {
        let mut jobs = Jobs::default();
        jobs.set_paused(["b".to_owned()]);
        let a = jobs.join("a", 2, 100);
        let b = jobs.join("b", 1, 10);
        assert_eq!(jobs.join("a", 1, 50), a);
        assert_eq!((jobs.may_go(a), jobs.may_go(b)), (true, false));
        jobs.leave(a, 2, Some(100));
        jobs.leave(b, 1, Some(10));
        assert_eq!(jobs.iter().map(|(_, j)| (&*j.name, j.recipients, j.bytes)).collect::<Vec<_>>(), [("a", 1, 50)]);
        let b = jobs.join("b", 1, 10);
        assert!(!jobs.may_go(b));
        jobs.set_paused([]);
        assert!(jobs.may_go(b));
    }
}
