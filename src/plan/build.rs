//! From guests, host and options to a plan, in three passes: what happens to each stream, names directory by
//! directory, and the new tree.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::extent::{LayerId, Map, Stream, Volume, What};
use crate::fs::host::{Content, Host, HostImage, HostName, Job, NewTree, Rules};
use crate::fs::{EntryId, Kind, ObjectId, StreamId, Tree};
use crate::plan::claims::Claims;
use crate::plan::tree::{self, Draft, Shape};
use crate::plan::{
    GuestVolume, Options, Part, Plan, Reason, Row, Space, Totals, Verdict, details, names, reuse, verdict,
};
use crate::txn::Staging;

/// Attribute bit of a directory, also of one that is a reparse point.
const DIRECTORY: u32 = 0x10;

/// The plan for writing `guests` below `into` of `host`, out of the units of `image`, and the host's new state by it, or why
/// there is none: it is what the plan's estimate is made from. Cost follows extents.
///
/// # Errors
/// [`Error::Usage`] where `into` is no name that the host can hold, and what reading the host's directory meets.
pub fn build(
    guests: &[GuestVolume],
    host: &dyn Host,
    image: &HostImage,
    into: &[HostName],
    options: &Options,
) -> Result<(Plan, Result<Staging>)> {
    let rules = host.rules();
    for name in into {
        if !names::legal(rules.names, name) {
            return Err(Error::Usage(format!(
                "the host can't hold a directory called {:?}: choose another one with --into",
                String::from_utf8_lossy(name)
            )));
        }
    }
    let there = host.names_in(into)?.unwrap_or_default();
    let zero_slack = options.zero_slack.unwrap_or(rules.slack_shows);
    let mut drafts = Drafts::new(rules, image, options);
    for (volume, guest) in guests.iter().enumerate() {
        drafts.volume(volume, guest);
    }
    let (left, layer) = (drafts.claims.left(), drafts.host);
    let mut drafts = drafts.drafts;
    details::add(guests, rules, &mut drafts);
    let (rows, entries, sources) = tree::assemble(guests, host, &there, drafts);
    let mut plan = Plan {
        rows,
        tree: NewTree { into: into.to_vec(), entries, sources, reuse: None },
        zero_slack,
        totals: Totals::default(),
    };
    let job = Job { tree: &plan.tree, image, zero_slack };
    let mut staging = host.new_state(&job);
    let estimate = host.needs(&job, staging.as_ref().ok());
    let image_units = left.iter().map(|(_, len)| len.checked_div(rules.unit).unwrap_or(0)).fold(0, u64::saturating_add);
    let (may_reuse, free_units) = (options.reuse, host.free_units());
    let mut space = Space { unit: rules.unit, free_units, estimate, image_units, reused: None, may_reuse };
    if matches!(staging, Err(Error::Refused(_))) || !space.fits() {
        let mut tree = plan.tree.clone();
        if let Some(found) = reuse::with_image(guests, host, layer, image, &mut tree, (left, zero_slack))? {
            space.reused = Some(found.reused);
            if may_reuse {
                (plan.tree, staging, space.estimate) = (tree, Ok(found.staging), found.estimate);
            }
        }
    }
    plan.totals = Totals::of(guests, &plan, space);
    Ok((plan, staging))
}

/// The first pass: a verdict for everything, in the order of the walk.
struct Drafts<'a> {
    rules: Rules,
    options: &'a Options,
    /// The host volume, by the image's own extents.
    host: Option<LayerId>,
    claims: Claims,
    drafts: Vec<Draft>,
    /// Room for one stream's extents.
    resolved: Map<Stream, Volume>,
}

/// What is known of the objects of one volume.
struct Seen {
    /// The draft of an object's first name, by the object's position.
    first: Vec<Option<usize>>,
    /// Objects that the reader found damaged.
    damaged: BTreeSet<ObjectId>,
}

impl<'a> Drafts<'a> {
    fn new(rules: Rules, image: &HostImage, options: &'a Options) -> Self {
        let host = image.files().flat_map(|f| f.map.extents()).find_map(|e| match e.what {
            What::Stored(p) => Some(p.layer),
            _ => None,
        });
        let claims = Claims::new(rules, image.files().map(|f| &f.map), host);
        Self { rules, options, host, claims, drafts: Vec::new(), resolved: Map::new() }
    }

    fn volume(&mut self, volume: usize, guest: &GuestVolume) {
        let tree = &guest.tree;
        let mut seen = Seen {
            first: vec![None; tree.objects().count()],
            damaged: tree.problems().iter().filter(|p| p.hides).filter_map(|p| p.object).collect(),
        };
        let top = match guest.part {
            Part::All => tree.root(),
            Part::Entry(e) | Part::Stream(e, _) => tree.entry(e).object,
        };
        if let Part::Stream(entry, stream) = guest.part {
            self.stream(volume, guest, &seen, Some(entry), stream);
            return;
        }
        if tree.object(top).kind == Kind::Dir {
            self.named_streams(volume, guest, &seen, None, top);
        }
        for entry in selected(tree, guest.part) {
            self.entry(volume, guest, &mut seen, entry);
        }
    }

    fn entry(&mut self, volume: usize, guest: &GuestVolume, seen: &mut Seen, entry: EntryId) {
        let tree = &guest.tree;
        let id = tree.entry(entry).object;
        let object = tree.object(id);
        let first = seen.first.get(id.index()).copied().flatten();
        let at = self.drafts.len();
        let data = tree.data(id);
        let kind =
            match object.kind {
                // What such a point is, its buffer says; beside it, the object is a file or a directory.
                Kind::Symlink | Kind::Junction | Kind::Reparse(_) | Kind::Socket | Kind::Fifo
                    if self.rules.reparse && details::buffer(tree, id).is_some() =>
                {
                    if object.attributes & DIRECTORY == 0 { Kind::File } else { Kind::Dir }
                }
                kind => kind,
            };
        match kind {
            Kind::Dir => self.add(volume, Some(entry), None, Ok(Shape::Dir)),
            Kind::File => self.data(volume, guest, seen, entry, data, first),
            // A reparse point may keep its data here all the same (a file that a cloud service has brought down).
            // Where all of it reads as zeros, the data are elsewhere, and zeros would be wrong.
            Kind::Reparse(_) if data.is_some_and(|s| tree.extents(s).iter().any(|e| e.what != What::Zero)) => {
                self.data(volume, guest, seen, entry, data, first);
            }
            Kind::Symlink if self.rules.symlinks => match (first, tree.target(id)) {
                (Some(first), _) => self.again(volume, entry, None, first),
                (None, Some(target)) => {
                    self.add(volume, Some(entry), None, Ok(Shape::Symlink(target.to_vec())));
                }
                (None, None) => self.add(volume, Some(entry), None, Err(Reason::Unreadable)),
            },
            Kind::Fifo | Kind::Socket | Kind::CharDevice(..) | Kind::BlockDevice(..) if self.rules.special => {
                match first {
                    Some(first) => self.again(volume, entry, None, first),
                    None => self.add(volume, Some(entry), None, Ok(Shape::Special(object.kind))),
                }
            }
            _ => self.add(volume, Some(entry), None, Err(Reason::Special)),
        }
        if let Some(slot) = seen.first.get_mut(id.index()) {
            slot.get_or_insert(at);
        }
        if first.is_none() || !self.rules.hard_links {
            self.named_streams(volume, guest, seen, Some(entry), id);
        }
    }

    /// The data of a file by one of its names.
    fn data(
        &mut self,
        volume: usize,
        guest: &GuestVolume,
        seen: &Seen,
        entry: EntryId,
        data: Option<StreamId>,
        first: Option<usize>,
    ) {
        match (first, data) {
            (Some(first), _) if self.rules.hard_links => self.again(volume, entry, data, first),
            (_, Some(stream)) => self.stream(volume, guest, seen, Some(entry), stream),
            (_, None) if seen.damaged.contains(&guest.tree.entry(entry).object) => {
                self.add(volume, Some(entry), None, Err(Reason::Unreadable));
            }
            (_, None) => self.add(volume, Some(entry), None, Ok(Shape::File(0, Content::Empty))),
        }
    }

    /// A further name of what the draft `first` writes.
    fn again(&mut self, volume: usize, entry: EntryId, stream: Option<StreamId>, first: usize) {
        let shape = match self.drafts.get(first).map(|d| &d.shape) {
            Some(Err(reason)) => Err(*reason),
            _ => Ok(Shape::HardLink(first)),
        };
        self.add(volume, Some(entry), stream, shape);
    }

    fn named_streams(
        &mut self,
        volume: usize,
        guest: &GuestVolume,
        seen: &Seen,
        entry: Option<EntryId>,
        object: ObjectId,
    ) {
        for stream in guest.tree.streams(object) {
            if guest.tree.stream_name(stream).is_some() {
                self.stream(volume, guest, seen, entry, stream);
            }
        }
    }

    fn stream(&mut self, volume: usize, guest: &GuestVolume, seen: &Seen, entry: Option<EntryId>, stream: StreamId) {
        let info = guest.tree.stream(stream);
        let shape = if seen.damaged.contains(&info.object) || self.options.unreadable.contains(&(volume, stream)) {
            Err(Reason::Unreadable)
        } else if info.size == 0 {
            Ok(Shape::File(0, Content::Empty))
        } else {
            match verdict::resolve(guest, stream, &mut self.resolved) {
                Err(reason) => Err(reason),
                Ok(()) => {
                    if self.rules.reparse && details::packed_elsewhere(&guest.tree, stream) {
                        details::as_holes(&mut self.resolved);
                    }
                    let extents = self.resolved.extents();
                    match verdict::obstacle(extents, info.form, self.rules, self.host) {
                        Some(Reason::FsCompressed) if info.size <= self.rules.max_file => {
                            match verdict::packed(guest, stream, self.rules, self.host) {
                                Some(Content::Packed { valid, extents }) if self.claims.take(&extents) => {
                                    Ok(Shape::File(info.size, Content::Packed { valid, extents }))
                                }
                                _ => Err(Reason::FsCompressed),
                            }
                        }
                        Some(reason) => Err(reason),
                        None if info.size > self.rules.max_file => Err(Reason::TooLarge),
                        None if !self.claims.take(extents) => Err(Reason::Shared),
                        None => Ok(Shape::File(info.size, Content::Linked(extents.to_vec()))),
                    }
                }
            }
        };
        let shape = match shape {
            Err(reason) if verdict::verdict(reason) == Verdict::Copy && info.size > self.rules.max_file => {
                Err(Reason::TooLarge)
            }
            Err(reason) if verdict::verdict(reason) == Verdict::Copy => {
                let stored = self.resolved.extents().iter().find_map(|e| match e.what {
                    What::Stored(place) if Some(place.layer) == self.host => Some(place.offset.get()),
                    _ => None,
                });
                self.push(volume, entry, Some(stream), Some(reason), Ok(Shape::File(info.size, Content::Copied)));
                if let Some(draft) = self.drafts.last_mut() {
                    draft.source = stored;
                }
                return;
            }
            other => other,
        };
        self.add(volume, entry, Some(stream), shape);
    }

    fn add(&mut self, volume: usize, entry: Option<EntryId>, stream: Option<StreamId>, shape: Result<Shape, Reason>) {
        let reason = match &shape {
            Ok(Shape::File(_, Content::Empty)) => Some(Reason::Empty),
            Ok(_) => None,
            Err(reason) => Some(*reason),
        };
        self.push(volume, entry, stream, reason, shape);
    }

    fn push(
        &mut self,
        volume: usize,
        entry: Option<EntryId>,
        stream: Option<StreamId>,
        reason: Option<Reason>,
        shape: Result<Shape, Reason>,
    ) {
        let verdict = match &shape {
            Ok(Shape::File(_, Content::Copied | Content::Bytes(_))) => Verdict::Copy,
            Ok(_) => Verdict::Link,
            Err(_) => Verdict::Skip,
        };
        let row = Row { volume, entry, stream, verdict, reason, written: None, renamed: false };
        self.drafts.push(Draft { row, shape, security: None, source: None });
    }
}

/// The entries of a volume that are written, in the order of the walk. The file system's own are left out, but for
/// directories of its own in which something else lies.
pub fn selected(tree: &Tree, of: Part) -> Vec<EntryId> {
    let mut below = None;
    let part = tree.order().filter(|(id, depth)| match of {
        Part::All => true,
        Part::Stream(..) => false,
        Part::Entry(top) => {
            if *id == top {
                below = Some(*depth);
                return tree.object(tree.entry(*id).object).kind != Kind::Dir;
            }
            below = below.filter(|top| depth > top);
            below.is_some()
        }
    });
    let mut out: Vec<(EntryId, bool)> = Vec::new();
    let mut way: Vec<(u32, usize)> = Vec::new();
    for (id, depth) in part {
        while way.last().is_some_and(|(above, _)| *above >= depth) {
            way.pop();
        }
        let wanted = !tree.object(tree.entry(id).object).system;
        way.push((depth, out.len()));
        out.push((id, false));
        if wanted {
            for (_, at) in way.iter().rev() {
                match out.get_mut(*at) {
                    Some((_, kept)) if !*kept => *kept = true,
                    _ => break,
                }
            }
        }
    }
    out.into_iter().filter(|(_, kept)| *kept).map(|(id, _)| id).collect()
}
