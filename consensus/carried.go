package consensus

const carriedName = "bonafide/carried/v1\n"

// MaxRecord bounds a carried epoch record.
const MaxRecord = 1 << 14

// Attested is one replica's attestation, opaque here.
type Attested struct {
	Replica     uint32
	Attestation []byte
}

// Carried is a record that some replica may have committed at an earlier tick of
// this epoch, which the attempt must certify again, byte for byte.
type Carried struct {
	Tick    uint64     // the highest tick at which it is shown committed
	Record  []byte     // the epoch record
	Prepare []Attested // its prepare certificate at Tick, ascending by replica
	Block   []byte     // the block that first built the record, itself carrying none
}

// Bytes is the encoding of c, the only one.
func (c Carried) Bytes() []byte {
	w := newWriter(carriedName)
	w.u64(c.Tick)
	w.blob(c.Record)
	w.count(len(c.Prepare))
	for _, a := range c.Prepare {
		w.replica(a.Replica)
		w.blob(a.Attestation)
	}
	w.blob(c.Block)
	return w.b
}

// ParseCarried accepts exactly what Bytes returns.
func ParseCarried(b []byte) (Carried, error) {
	r := newReader(carriedName, b)
	c := Carried{Tick: r.u64(), Record: r.blob(MaxRecord)}
	for range r.count(MaxMembers, 4+4) {
		c.Prepare = append(c.Prepare, Attested{Replica: r.u32(), Attestation: r.blob(MaxAttestation)})
	}
	c.Block = r.blob(maxBare)
	if err := r.end(); err != nil {
		return Carried{}, err
	}
	if err := canonical(c, b); err != nil {
		return Carried{}, err
	}
	return c, nil
}

const maxCarried = len(carriedName) + 8 + 4 + MaxRecord + 4 + MaxMembers*(4+4+MaxAttestation) + 4 + maxBare

func (c Carried) form() error {
	if c.Tick == 0 || len(c.Record) == 0 || len(c.Record) > MaxRecord {
		return malformed("carried tick %d, record of %d bytes", c.Tick, len(c.Record))
	}
	if len(c.Prepare) > MaxMembers || len(c.Block) > maxBare {
		return malformed("%d prepare votes, block of %d bytes", len(c.Prepare), len(c.Block))
	}
	for _, a := range c.Prepare {
		if len(a.Attestation) > MaxAttestation {
			return malformed("attestation of %d bytes", len(a.Attestation))
		}
	}
	return ascending(c.Prepare, func(a Attested) uint32 { return a.Replica })
}

// check says whether c is complete: a quorum of prepare votes by members, and a
// block of another instance of the same roster that carried nothing itself.
func (c Carried) check(inst [32]byte, quorum int, members []Member) error {
	if len(c.Prepare) != quorum {
		return malformed("%d prepare votes, not %d", len(c.Prepare), quorum)
	}
	for _, a := range c.Prepare {
		if _, ok := member(members, a.Replica); !ok {
			return malformed("prepare vote of replica %d, which is no member", a.Replica)
		}
	}
	b, err := ParseBlock(c.Block)
	if err != nil {
		return err
	}
	if b.Carried != nil || b.Instance == inst {
		return malformed("block is not the one that first built the record")
	}
	return b.Check(b.Instance, quorum, members)
}
