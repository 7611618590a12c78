//! A target that answers late now and then, as one does whose disk is busy: initiators send again meanwhile.

use crate::target::Target;

/// Delays one answer in so many.
pub struct HesitantTarget<T> {
    target: T,
    every: u64,
    cycles: u64,
    answers: u64,
}

impl<T: Target> HesitantTarget<T> {
    /// One answer in `every` of `target`'s comes `cycles` core cycles later than it would.
    ///
    /// # Panics
    /// `every` is 0.
    pub fn new(target: T, every: u64, cycles: u64) -> Self {
        assert!(every > 0, "one answer in none");
        Self { target, every, cycles, answers: 0 }
    }
}

impl<T: Target> Target for HesitantTarget<T> {
    fn frame(&mut self, frame: &[u8], cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let before = answers.len();
        self.target.frame(frame, cycle, answers);
        self.delay(&mut answers[before..]);
    }

    fn poll(&mut self, cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let before = answers.len();
        self.target.poll(cycle, answers);
        self.delay(&mut answers[before..]);
    }

    fn trouble(&self) -> Option<&str> {
        self.target.trouble()
    }
}

impl<T> HesitantTarget<T> {
    fn delay(&mut self, answers: &mut [(u64, Vec<u8>)]) {
        for (delay, _) in answers {
            self.answers += 1;
            if self.answers.is_multiple_of(self.every) {
                *delay += self.cycles;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two;

    impl Target for Two {
        fn frame(&mut self, _frame: &[u8], _cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
            answers.extend([(1, vec![]), (2, vec![])]);
        }

        fn poll(&mut self, cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
            self.frame(&[], cycle, answers);
        }
    }

    #[test]
    fn every_third_answer_is_late() {
        let mut target = HesitantTarget::new(Two, 3, 100);
        let mut answers = Vec::new();
        target.frame(&[], 0, &mut answers);
        target.poll(0, &mut answers);
        target.frame(&[], 0, &mut answers);
        let delays: Vec<u64> = answers.iter().map(|(delay, _)| *delay).collect();
        assert_eq!(delays, [1, 2, 101, 2, 1, 102]);
    }
}
