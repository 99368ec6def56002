//! `map`: where the bytes of a thing are, on every level.

use std::ffi::OsString;

use clap::Args;

use super::{End, Session, ls, names};
use crate::report::json::{Row, number};
use crate::report::levels::{self, Column, End as Ends, Levels, Piece};
use crate::report::{listing, text};
use crate::stack::{Stack, Target};

/// Show where the bytes of a file, volume or image are, on every level
///
/// One line for each stretch that is in one piece on all levels: its offset, its length, and its offset in the volume,
/// the virtual disk and the file or device below, and so on down to the ground. All in bytes.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage map disk.raw//p1/pagefile.sys          a file, in its volume, disk and image file
  unimage map host.raw//vm/win.raw//p1/x.txt     a file of an image on a host: down to the host's sectors
  unimage map --json disk.raw//p1                a volume")]
pub struct Map {
    /// What to map
    #[arg(value_name = "ADDR")]
    address: OsString,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Map {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        let address = s.address(&self.address)?;
        let stack = s.open(&self.address)?;
        let all = levels::trace(&stack, &names(&address)).map_err(|e| e.within(&address.to_string()))?;
        if self.json { self.json(s, &stack, &all) } else { table(s, &all) }
    }

    fn json(&self, s: &mut Session<'_>, stack: &Stack, all: &Levels<'_>) -> Result<u8, End> {
        s.header("unimage/map/1");
        let column = |c: &Column| serde_json::json!({"level": c.level, "space": c.space, "name": c.name});
        let columns: Vec<_> = all.columns.iter().map(column).collect();
        self.entry(s, stack, all.len)?;
        Row::new(s.out.buffer(), "levels").value("levels", &columns).end();
        let row = |piece: &Piece<'_>, out: &mut Vec<u8>| {
            Row::new(out, "extent")
                .number("start", piece.start)
                .number("len", piece.len)
                .word("what", piece.end.word())
                .numbers("at", piece.at)
                .some("file", piece.file)
                .end();
        };
        let totals = all.rows(row, |rows| s.out.write(rows).map_err(End::from))?;
        let [stored, zero, encoded, elsewhere] = totals.bytes;
        Row::new(s.out.buffer(), "summary")
            .number("extents", totals.extents)
            .number("stored", stored)
            .number("zero", zero)
            .number("encoded", encoded)
            .number("elsewhere", elsewhere)
            .end();
        Ok(0)
    }

    /// The row of what is mapped.
    fn entry(&self, s: &mut Session<'_>, stack: &Stack, size: u64) -> Result<(), End> {
        let Some(level) = stack.levels.last() else { return Ok(()) };
        let out = s.out.buffer();
        match &stack.target {
            Target::Disk => Row::new(out, "entry").word("path", "").word("kind", "image").number("size", size).end(),
            Target::Volume(v) => {
                let name = level.table.slots.get(*v).map_or("", |slot| slot.name.as_str());
                Row::new(out, "entry").value("path", name).word("kind", "volume").number("size", size).end();
            }
            Target::Object(v, path, id) => {
                if let Some(guest) = level.guests.get(*v) {
                    listing::single(&*guest.tree()?, *id, ls::last(path), |visit| {
                        listing::json_object(out, visit);
                        Ok::<_, End>(())
                    })?;
                }
            }
            Target::Stream(v, path, id) => {
                if let Some(guest) = level.guests.get(*v) {
                    let tree = guest.tree()?;
                    let name = tree.stream_name(*id).unwrap_or_default();
                    listing::single(&tree, tree.stream(*id).object, ls::last(ls::file_of(path, name)), |visit| {
                        listing::json_stream(out, visit, *id, name);
                        Ok::<_, End>(())
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn table(s: &mut Session<'_>, all: &Levels<'_>) -> Result<u8, End> {
    const WIDTH: usize = 16;
    let out = s.out.buffer();
    for column in &all.columns {
        let name = text::clean(&column.name);
        out.extend_from_slice(format!("level {} {:<7} {name}\n", column.level, column.space).as_bytes());
    }
    for head in ["offset", "length"] {
        text::right(out, WIDTH, |out| out.extend_from_slice(head.as_bytes()));
    }
    for column in &all.columns {
        text::right(out, WIDTH, |out| {
            out.extend_from_slice(format!("{} {}", column.space, column.level).as_bytes());
        });
    }
    out.push(b'\n');
    let row = |piece: &Piece<'_>, out: &mut Vec<u8>| {
        for n in [piece.start, piece.len].iter().chain(piece.at) {
            text::right(out, WIDTH, |out| number(out, *n));
        }
        if piece.end != Ends::Stored {
            text::right(out, WIDTH, |out| out.extend_from_slice(piece.end.word().as_bytes()));
        }
        if let Some(file) = piece.file {
            out.extend_from_slice(b"  ");
            out.extend_from_slice(text::clean(file).as_bytes());
        }
        out.push(b'\n');
    };
    all.rows(row, |rows| s.out.write(rows).map_err(End::from))?;
    Ok(0)
}
