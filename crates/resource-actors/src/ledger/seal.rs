//! The checksum of each line of a ledger file.
//!
//! Every line ends with a sum over itself and all lines before it, so that a flipped bit, a line
//! that is gone, one that stands twice and two that changed places are all found, and told with the
//! number of the line. It is a guard against accidents; who may write to the file can sum, too.

use sandbox_model::ledger::Record;

use super::Violation;

/// What stands before the 16 hexadecimal digits of the sum.
const SUM: &str = ",\"sum\":\"";
/// The length of the sum and of what stands around it.
const SUM_LEN: usize = SUM.len() + 16 + 2;
/// The longest line in bytes: the longest name that Linux takes is 4 KiB.
const LINE_BYTES_MAX: usize = 256 << 10;

/// The sum of the lines so far.
#[derive(Debug, Clone, Copy)]
pub struct Seal(u64);

impl Default for Seal {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Seal {
    /// The line of the next record, with its line break, and the seal after it.
    ///
    /// # Errors
    /// [`Violation::Syntax`]: the record cannot be written down, or is too long.
    pub fn line(self, record: &Record) -> Result<(String, Self), Violation> {
        let mut line = serde_json::to_string(record).map_err(|error| Violation::Syntax(error.to_string()))?;
        let sum = self.over(line.as_bytes());
        // A record is an object, so the last character is its brace.
        line.pop();
        line.push_str(&format!("{SUM}{:016x}\"}}\n", sum.0));
        if line.len() > LINE_BYTES_MAX {
            return Err(Violation::Syntax(format!("a record of {} bytes is too long", line.len())));
        }
        Ok((line, sum))
    }

    /// The record of the next line, given without its line break, and the seal after it.
    ///
    /// # Errors
    /// [`Violation::Syntax`], or [`Violation::Sum`].
    pub fn record(self, line: &str) -> Result<(Record, Self), Violation> {
        let unsealed = || Violation::Syntax("it has no sum".to_owned());
        let end = line.len().checked_sub(SUM_LEN).filter(|end| line.is_char_boundary(*end)).ok_or_else(unsealed)?;
        let (body, sum) = line.split_at(end);
        let told = sum.strip_prefix(SUM).and_then(|rest| rest.strip_suffix("\"}")).ok_or_else(unsealed)?;
        let text = format!("{body}}}");
        let seal = self.over(text.as_bytes());
        if told != format!("{:016x}", seal.0) {
            return Err(Violation::Sum);
        }
        let record = serde_json::from_str(&text).map_err(|error| Violation::Syntax(error.to_string()))?;
        Ok((record, seal))
    }

    /// FNV-1a, 64 bits: each step is a bijection of the sum, so no single change goes unnoticed.
    fn over(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
    }
}

#[cfg(test)]
mod tests {
    use sandbox_model::ledger::EntryId;

    use super::*;

    fn undone(entry: u64) -> Record {
        Record::Undone { entry: EntryId(entry) }
    }

    #[test]
    fn a_line_comes_back_as_its_record() {
        let (first, seal) = Seal::default().line(&undone(1)).unwrap();
        let (second, _) = seal.line(&undone(2)).unwrap();
        let (record, seal) = Seal::default().record(first.trim_end()).unwrap();
        assert_eq!(record, undone(1));
        assert_eq!(seal.record(second.trim_end()).unwrap().0, undone(2));
        assert_eq!(Seal::default().record(second.trim_end()).unwrap_err(), Violation::Sum, "a line before it is gone");
        assert_eq!(seal.record(first.trim_end()).unwrap_err(), Violation::Sum, "it stands twice");
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let (line, _) = Seal::default().line(&undone(7)).unwrap();
        let line = line.trim_end();
        for bit in 0..line.len() * 8 {
            let mut bytes = line.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert!(Seal::default().record(&text).is_err(), "bit {bit}: {text}");
        }
    }
}
