package archive

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

const recordHeader = "bonafide/epoch/v1"

// MaxRecord bounds an encoded epoch record, in bytes.
const MaxRecord = 4096

// EpochRecord is what a successful update phase makes. Its encoding is text,
// so that sha256sum and a person can read it.
type EpochRecord struct {
	Archive  Digest // archive ID
	Epoch    Epoch
	Tick     uint64    // the attempt that first built it
	Time     time.Time // median of the times in the block; whole seconds, UTC
	Roster   Digest    // digest of the roster in force
	Previous Digest    // head of the epoch before
	Root     tree.Hash
	Names    uint64
	Block    Digest   // digest of the agreed block
	Joined   []uint32 // replicas of its join set, ascending
	Counts   []ReplicaCounts
}

// ReplicaCounts is a replica's newest known reset and restart count.
type ReplicaCounts struct {
	Replica uint32
	trust.Counts
}

// Genesis returns the record of epoch 0 of the archive whose first roster is r.
func Genesis(r *Roster) EpochRecord {
	id := r.ID()
	rec := EpochRecord{Archive: id, Roster: id, Time: r.Created, Root: tree.EmptyRoot()}
	for _, m := range r.Replicas {
		rec.Counts = append(rec.Counts, ReplicaCounts{Replica: m.ID})
	}
	return rec
}

// Head returns the SHA-256 of the record's encoding, which a MAS slot holds.
func (rec EpochRecord) Head() Digest { return DigestOf(rec.Bytes()) }

// HasJoined reports whether the replica stands in the record's join set.
func (rec EpochRecord) HasJoined(id uint32) bool {
	for _, j := range rec.Joined {
		if j == id {
			return true
		}
	}
	return false
}

// CountsOf returns the counts that the record gives for a replica.
func (rec EpochRecord) CountsOf(id uint32) (trust.Counts, bool) {
	for _, c := range rec.Counts {
		if c.Replica == id {
			return c.Counts, true
		}
	}
	return trust.Counts{}, false
}

// Bytes returns the record's one encoding.
func (rec EpochRecord) Bytes() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\narchive %s\nepoch %d\ntick %d\n", recordHeader, rec.Archive, rec.Epoch, rec.Tick)
	fmt.Fprintf(&b, "time %s\nroster %s\nprevious %s\n", rec.Time.UTC().Format(time.RFC3339), rec.Roster, rec.Previous)
	fmt.Fprintf(&b, "root %s\nnames %d\nblock %s\njoined", Digest(rec.Root), rec.Names, rec.Block)
	for _, j := range rec.Joined {
		fmt.Fprintf(&b, " %d", j)
	}
	b.WriteString("\ncounts")
	for _, c := range rec.Counts {
		fmt.Fprintf(&b, " %d:%d.%d", c.Replica, c.Reset, c.Restart)
	}
	b.WriteString("\n")
	return []byte(b.String())
}

// ParseRecord parses what Bytes returns and nothing else.
func ParseRecord(b []byte) (EpochRecord, error) {
	if len(b) > MaxRecord {
		return EpochRecord{}, fmt.Errorf("epoch record: %w: %d bytes", ErrFormat, len(b))
	}
	rec, err := parseRecord(string(b))
	if err != nil {
		return EpochRecord{}, fmt.Errorf("epoch record: %w", err)
	}
	if string(rec.Bytes()) != string(b) {
		return EpochRecord{}, fmt.Errorf("epoch record: %w: not in its one form", ErrFormat)
	}
	return rec, nil
}

func parseRecord(s string) (rec EpochRecord, err error) {
	lines := strings.Split(s, "\n")
	if len(lines) != 13 || lines[0] != recordHeader || lines[12] != "" {
		return rec, fmt.Errorf("%w: not a %s", ErrFormat, recordHeader)
	}
	fields := []struct {
		key string
		set func(v string) error
	}{
		{"archive", rec.Archive.set}, {"epoch", setUint(&rec.Epoch)}, {"tick", setUint(&rec.Tick)},
		{"time", func(v string) (err error) { rec.Time, err = time.Parse(time.RFC3339, v); return err }},
		{"roster", rec.Roster.set}, {"previous", rec.Previous.set}, {"root", (*Digest)(&rec.Root).set},
		{"names", setUint(&rec.Names)}, {"block", rec.Block.set},
		{"joined", rec.setJoined}, {"counts", rec.setCounts},
	}
	for i, f := range fields {
		v, ok := strings.CutPrefix(lines[i+1], f.key)
		if !ok {
			return rec, fmt.Errorf("%w: line %d is not %s", ErrFormat, i+2, f.key)
		}
		if err := f.set(strings.TrimPrefix(v, " ")); err != nil {
			return rec, fmt.Errorf("%w: %s: %v", ErrFormat, f.key, err)
		}
	}
	return rec, nil
}

func (d *Digest) set(v string) error { return unhex(d[:], v) }

func setUint[T ~uint64](p *T) func(string) error {
	return func(v string) error {
		n, err := strconv.ParseUint(v, 10, 64)
		*p = T(n)
		return err
	}
}

func (rec *EpochRecord) setJoined(v string) error {
	for _, f := range strings.Fields(v) {
		id, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return err
		}
		if n := len(rec.Joined); n > 0 && rec.Joined[n-1] >= uint32(id) {
			return fmt.Errorf("not ascending")
		}
		rec.Joined = append(rec.Joined, uint32(id))
	}
	return nil
}

func (rec *EpochRecord) setCounts(v string) error {
	for _, f := range strings.Fields(v) {
		var c ReplicaCounts
		if _, err := fmt.Sscanf(f, "%d:%d.%d", &c.Replica, &c.Reset, &c.Restart); err != nil {
			return err
		}
		if n := len(rec.Counts); n > 0 && rec.Counts[n-1].Replica >= c.Replica {
			return fmt.Errorf("not ascending")
		}
		rec.Counts = append(rec.Counts, c)
	}
	return nil
}
