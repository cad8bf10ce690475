package consensus

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write the vectors anew")

// The fixture of SPEC.md: four members, a quorum of three.
const (
	testQuorum = 3
	vectors    = "testdata/vectors.txt"
)

var (
	testInst  = filled(0x11)
	firstInst = filled(0x10) // of the attempt before
)

func filled(b byte) (h [32]byte) {
	for i := range h {
		h[i] = b
	}
	return h
}

func testMembers() (out []Member) {
	for id := uint32(1); id <= 4; id++ {
		out = append(out, Member{ID: id, Address: fmt.Sprintf("127.0.0.1:%d", 20000+id), Key: testPublic(id)})
	}
	return out
}

func testManifest(inst [32]byte, id uint32) Manifest {
	return Manifest{Instance: inst, Replica: id, Time: 1795402800 + int64(id), Reset: 17, Restart: 1,
		Size: 300000, Pieces: []Piece{{filled(0xa0), 262144}, {filled(0xa1), 37856}}}
}

func testJoin(inst [32]byte, id uint32) Join {
	j := Join{Manifest: testManifest(inst, id), Attestation: []byte("attestation of " + fmt.Sprint(id))}
	for other := uint32(1); other <= 4; other++ {
		if other != id {
			j.Challenges = append(j.Challenges, Challenge{other, filled(byte(other))})
		}
	}
	return j
}

func testProposal(inst [32]byte, id uint32) ProposalCertificate {
	p := ProposalCertificate{Join: testJoin(inst, id)}
	for voter := uint32(1); voter <= testQuorum; voter++ {
		p.Vouchers = append(p.Vouchers, SignVoucher(testKey(voter), inst, voter, id, p.Join.Digest()))
	}
	return p
}

func testBlock(inst [32]byte) Block {
	b := Block{Instance: inst}
	for id := uint32(2); id <= 4; id++ {
		b.Proposals = append(b.Proposals, testProposal(inst, id))
	}
	return b
}

func testCarried() Carried {
	c := Carried{Tick: 1, Record: []byte("bonafide/epoch/v1\n"), Block: testBlock(firstInst).Bytes()}
	for id := uint32(1); id <= testQuorum; id++ {
		c.Prepare = append(c.Prepare, Attested{id, []byte("prepare of " + fmt.Sprint(id))})
	}
	return c
}

func carryingBlock() Block {
	b, c := testBlock(testInst), testCarried()
	b.Carried = &c
	return b
}

// format is one message: an example, and its parser, which returns the message.
type format struct {
	name    string
	example message
	parse   func([]byte) (message, error)
}

func (v Voucher) form() error { return nil } // so that a voucher is a message here too

var formats = sync.OnceValue(func() []format {
	return []format{
		{"manifest", testManifest(testInst, 2), as(ParseManifest)},
		{"join", testJoin(testInst, 2), as(ParseJoin)},
		{"voucher", testProposal(testInst, 2).Vouchers[0], as(ParseVoucher)},
		{"proposal", testProposal(testInst, 2), as(ParseProposalCertificate)},
		{"carried", testCarried(), as(ParseCarried)},
		{"block", testBlock(testInst), as(ParseBlock)},
		{"carrying", carryingBlock(), as(ParseBlock)},
		{"empty manifest", Manifest{}, as(ParseManifest)},
		{"empty join", Join{}, as(ParseJoin)},
		{"empty proposal", ProposalCertificate{}, as(ParseProposalCertificate)},
		{"empty block", Block{}, as(ParseBlock)},
	}
})

func as[T message](parse func([]byte) (T, error)) func([]byte) (message, error) {
	return func(b []byte) (message, error) { return parse(b) }
}

func TestRoundTrip(t *testing.T) {
	for _, f := range formats() {
		got, err := f.parse(f.example.Bytes())
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if !reflect.DeepEqual(got, f.example) {
			t.Errorf("%s: got %+v, want %+v", f.name, got, f.example)
		}
	}
}

// Every prefix, every extension, and every flipped byte is refused, or it is
// another message in its own one encoding.
func TestOneEncoding(t *testing.T) {
	for _, f := range formats() {
		b := f.example.Bytes()
		for n := range b {
			if _, err := f.parse(b[:n]); !errors.Is(err, ErrForm) {
				t.Fatalf("%s: first %d bytes: %v", f.name, n, err)
			}
		}
		if _, err := f.parse(append(slices.Clone(b), 0)); !errors.Is(err, ErrForm) {
			t.Errorf("%s: one byte more: %v", f.name, err)
		}
		for i := range b {
			flipped := slices.Clone(b)
			flipped[i] ^= 0x41
			if got, err := f.parse(flipped); err == nil && !bytes.Equal(got.Bytes(), flipped) {
				t.Fatalf("%s: byte %d flipped: another encoding", f.name, i)
			}
		}
	}
}

func TestVoucherFlips(t *testing.T) {
	good := testProposal(testInst, 2).Vouchers[0]
	if err := good.Verify(testPublic(1)); err != nil {
		t.Fatal(err)
	}
	for _, key := range [][]byte{testPublic(2), nil, make([]byte, 31)} {
		if err := good.Verify(key); !errors.Is(err, ErrSignature) {
			t.Errorf("key %x: %v", key, err)
		}
	}
	b := good.Bytes()
	for i := range b {
		for bit := range 8 {
			flipped := slices.Clone(b)
			flipped[i] ^= 1 << bit
			v, err := ParseVoucher(flipped)
			if err == nil && !errors.Is(v.Verify(testPublic(1)), ErrSignature) {
				t.Fatalf("byte %d bit %d flipped: verifies", i, bit)
			}
		}
	}
}

// No byte of a certificate or of a block can change unnoticed, but for the
// attestations, which are the caller's to check: they are covered by the join
// digests, so by the vouchers; a carried record and its prepare votes are not.
func TestBlockFlips(t *testing.T) {
	small := testBlock(testInst)
	small.Proposals = small.Proposals[:2]
	for i := range small.Proposals {
		small.Proposals[i].Vouchers = small.Proposals[i].Vouchers[:1]
	}
	if err := small.Check(testInst, 1, testMembers()); err != nil {
		t.Fatal(err)
	}
	b := small.Bytes()
	for i := range b {
		flipped := slices.Clone(b)
		flipped[i] ^= 0x01
		got, err := ParseBlock(flipped)
		if err == nil && got.Check(testInst, 1, testMembers()) == nil {
			t.Fatalf("byte %d flipped: passes", i)
		}
	}
}

func TestBlockCheck(t *testing.T) {
	type change func(b *Block)
	foreign := func(p *ProposalCertificate) {
		p.Vouchers[2] = SignVoucher(testKey(9), testInst, 9, p.Replica(), p.Join.Digest())
	}
	for _, row := range []struct {
		name string
		make change
		want error // nil: passes
	}{
		{"as it is", func(*Block) {}, nil},
		{"carrying nothing", func(b *Block) { b.Carried = nil }, nil},
		{"all four", func(b *Block) { b.Proposals = slices.Insert(b.Proposals, 0, testProposal(testInst, 1)) }, nil},
		{"another instance", func(b *Block) { b.Instance[0]++ }, ErrForm},
		{"too few proposals", func(b *Block) { b.Proposals = b.Proposals[1:] }, ErrForm},
		{"one proposal twice", func(b *Block) { b.Proposals[1] = b.Proposals[0] }, ErrForm},
		{"out of order", func(b *Block) { slices.Reverse(b.Proposals) }, ErrForm},
		{"proposal of a stranger", func(b *Block) { b.Proposals[2] = testProposal(testInst, 9) }, ErrForm},
		{"proposal of another instance", func(b *Block) { b.Proposals[0] = testProposal(firstInst, 2) }, ErrForm},
		{"voucher too few", func(b *Block) { b.Proposals[0].Vouchers = b.Proposals[0].Vouchers[1:] }, ErrForm},
		{"voucher too many", func(b *Block) {
			p := &b.Proposals[0]
			p.Vouchers = append(p.Vouchers, SignVoucher(testKey(4), testInst, 4, 2, p.Join.Digest()))
		}, ErrForm},
		{"voucher twice", func(b *Block) { b.Proposals[0].Vouchers[1] = b.Proposals[0].Vouchers[0] }, ErrForm},
		{"voucher of a stranger", func(b *Block) { foreign(&b.Proposals[0]) }, ErrForm},
		{"voucher for another", func(b *Block) { b.Proposals[0].Vouchers = b.Proposals[1].Vouchers }, ErrForm},
		{"voucher signed by another", func(b *Block) {
			v := SignVoucher(testKey(4), testInst, 1, 2, b.Proposals[0].Join.Digest())
			b.Proposals[0].Vouchers[0] = v
		}, ErrSignature},
		{"carried without quorum", func(b *Block) { b.Carried.Prepare = b.Carried.Prepare[1:] }, ErrForm},
		{"carried prepare twice", func(b *Block) { b.Carried.Prepare[1] = b.Carried.Prepare[0] }, ErrForm},
		{"carried prepare of a stranger", func(b *Block) { b.Carried.Prepare[2].Replica = 9 }, ErrForm},
		{"carried at no tick", func(b *Block) { b.Carried.Tick = 0 }, ErrForm},
		{"carried without record", func(b *Block) { b.Carried.Record = nil }, ErrForm},
		{"carried without block", func(b *Block) { b.Carried.Block = nil }, ErrForm},
		{"carried block of this instance", func(b *Block) { b.Carried.Block = testBlock(testInst).Bytes() }, ErrForm},
		{"carried block that carries", func(b *Block) {
			inner := testBlock(firstInst)
			inner.Carried = b.Carried
			b.Carried = &Carried{Tick: 2, Record: []byte("r"), Prepare: b.Carried.Prepare, Block: inner.Bytes()}
		}, ErrForm},
		{"carried block with a flip", func(b *Block) {
			b.Carried.Block = slices.Clone(b.Carried.Block)
			b.Carried.Block[len(b.Carried.Block)-5] ^= 1 // in its last signature
		}, ErrSignature},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := carryingBlock()
			row.make(&b)
			got := b.Check(testInst, testQuorum, testMembers())
			if !errors.Is(got, row.want) {
				t.Errorf("got %v, want %v", got, row.want)
			}
		})
	}
}

func TestFormRefused(t *testing.T) {
	piece := func(n uint32) []Piece { return []Piece{{Size: n}} }
	many := make([]Piece, MaxPieces+1)
	for i := range many {
		many[i].Size = 1
	}
	for name, m := range map[string]message{
		"empty piece":        Manifest{Pieces: piece(0)},
		"large piece":        Manifest{Pieces: piece(MaxPiece + 1), Size: MaxPiece + 1},
		"wrong sum":          Manifest{Pieces: piece(5), Size: 6},
		"size of nothing":    Manifest{Size: 1},
		"many pieces":        Manifest{Pieces: many, Size: MaxPieces + 1},
		"negative time":      Manifest{Time: -1},
		"far time":           Manifest{Time: MaxTime + 1},
		"unordered":          Join{Challenges: []Challenge{{Replica: 2}, {Replica: 1}}},
		"twice":              Join{Challenges: []Challenge{{Replica: 2}, {Replica: 2}}},
		"long attestation":   Join{Attestation: make([]byte, MaxAttestation+1)},
		"many challenges":    Join{Challenges: make([]Challenge, MaxMembers+1)},
		"many vouchers":      ProposalCertificate{Vouchers: make([]Voucher, MaxMembers+1)},
		"many proposals":     Block{Proposals: make([]ProposalCertificate, MaxMembers+1)},
		"long record":        Carried{Tick: 1, Record: make([]byte, MaxRecord+1)},
		"vouchers unordered": ProposalCertificate{Vouchers: []Voucher{{Voter: 2}, {Voter: 1}}},
	} {
		if err := m.form(); !errors.Is(err, ErrForm) {
			t.Errorf("%s: form says %v", name, err)
		}
		if err := parseAs(m); !errors.Is(err, ErrForm) {
			t.Errorf("%s: parsed: %v", name, err)
		}
	}
}

func parseAs(m message) (err error) {
	switch m.(type) {
	case Manifest:
		_, err = ParseManifest(m.Bytes())
	case Join:
		_, err = ParseJoin(m.Bytes())
	case ProposalCertificate:
		_, err = ParseProposalCertificate(m.Bytes())
	case Block:
		_, err = ParseBlock(m.Bytes())
	case Carried:
		_, err = ParseCarried(m.Bytes())
	}
	return err
}

// A length that promises more than there is costs no memory.
func TestHugeCounts(t *testing.T) {
	for _, f := range formats() {
		b := f.example.Bytes()
		for i := 0; i+4 <= len(b); i++ {
			huge := slices.Clone(b)
			copy(huge[i:], "\xff\xff\xff\xff")
			if got, err := f.parse(huge); err == nil && !bytes.Equal(got.Bytes(), huge) {
				t.Fatalf("%s: count at %d", f.name, i)
			}
		}
	}
}

func TestLargestFits(t *testing.T) {
	b := Block{Instance: testInst, Carried: &Carried{Tick: 1, Record: make([]byte, MaxRecord)}}
	for id := uint32(1); id <= MaxMembers; id++ {
		p := ProposalCertificate{Join: Join{Manifest: Manifest{Instance: testInst, Replica: id, Size: MaxPieces}}}
		p.Join.Manifest.Pieces = slices.Repeat([]Piece{{Size: 1}}, MaxPieces)
		p.Join.Attestation = make([]byte, MaxAttestation)
		for other := uint32(1); other <= MaxMembers; other++ {
			p.Join.Challenges = append(p.Join.Challenges, Challenge{Replica: other})
			p.Vouchers = append(p.Vouchers, Voucher{Voter: other})
		}
		b.Proposals = append(b.Proposals, p)
		b.Carried.Prepare = append(b.Carried.Prepare, Attested{id, make([]byte, MaxAttestation)})
	}
	b.Carried.Block = Block{Instance: firstInst, Proposals: b.Proposals}.Bytes()
	if n := len(b.Bytes()); n != MaxBlock {
		t.Errorf("largest block has %d bytes, MaxBlock is %d", n, MaxBlock)
	}
	if _, err := ParseBlock(b.Bytes()); err != nil {
		t.Error(err)
	}
}

func TestJoinAnswers(t *testing.T) {
	j := testJoin(testInst, 2)
	for _, row := range []struct {
		id   uint32
		n    [32]byte
		want bool
	}{{1, filled(1), true}, {1, filled(3), false}, {2, filled(2), false}, {9, [32]byte{}, false}} {
		if got := j.Answers(row.id, row.n); got != row.want {
			t.Errorf("challenge of %d: %v", row.id, got)
		}
	}
}

// The nonce covers instance, manifest and every challenge.
func TestJoinNonce(t *testing.T) {
	seen := map[[32]byte]string{}
	for name, change := range map[string]func(*Join){
		"as it is":    func(*Join) {},
		"instance":    func(j *Join) { j.Manifest.Instance[0]++ },
		"replica":     func(j *Join) { j.Manifest.Replica++ },
		"piece":       func(j *Join) { j.Manifest.Pieces[0].Digest[0]++ },
		"challenge":   func(j *Join) { j.Challenges[0].Nonce[0]++ },
		"challenger":  func(j *Join) { j.Challenges[2].Replica++ },
		"one fewer":   func(j *Join) { j.Challenges = j.Challenges[1:] },
		"no one asks": func(j *Join) { j.Challenges = nil },
	} {
		j := testJoin(testInst, 2)
		change(&j)
		if other, ok := seen[j.Nonce()]; ok {
			t.Errorf("%s: nonce as %s", name, other)
		}
		seen[j.Nonce()] = name
	}
	a, b := testJoin(testInst, 2), testJoin(testInst, 2)
	if b.Attestation = nil; a.Nonce() != b.Nonce() {
		t.Error("the nonce covers its own answer")
	}
}

// vectorLines are what testdata/vectors.txt holds: SPEC.md explains them.
func vectorLines() (out []string) {
	for id := uint32(1); id <= 4; id++ {
		out = append(out, fmt.Sprintf("key-%d %x", id, testPublic(id)))
	}
	for _, f := range formats()[:7] {
		out = append(out, fmt.Sprintf("%s %x", f.name, f.example.Bytes()))
	}
	b := testBlock(testInst)
	return append(out, fmt.Sprintf("join-nonce %x", testJoin(testInst, 2).Nonce()),
		fmt.Sprintf("manifest-digest %x", testManifest(testInst, 2).Digest()),
		fmt.Sprintf("join-digest %x", testJoin(testInst, 2).Digest()),
		fmt.Sprintf("block-digest %x", b.Digest()), fmt.Sprintf("pieces %s", testPieces()))
}

func TestVectors(t *testing.T) {
	want := strings.Join(vectorLines(), "\n") + "\n"
	if *update {
		if err := os.WriteFile(vectors, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectors)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("the code does not make testdata/vectors.txt")
	}
}

func readVectors(t testing.TB) (out map[string][]byte) {
	f, err := os.Open(vectors)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out = map[string][]byte{}
	s := bufio.NewScanner(f)
	for s.Buffer(nil, 1<<20); s.Scan(); {
		name, text, _ := strings.Cut(s.Text(), " ")
		if b, err := hex.DecodeString(text); err == nil {
			out[name] = b
		}
	}
	return out
}

// FuzzParse: whatever is parsed encodes to what it was parsed from, and no
// parser or check panics.
func FuzzParse(f *testing.F) {
	members := testMembers()
	for _, b := range readVectors(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, format := range formats() {
			got, err := format.parse(b)
			if err != nil && !errors.Is(err, ErrForm) {
				t.Fatalf("%s: %v", format.name, err)
			}
			if err == nil && !bytes.Equal(got.Bytes(), b) {
				t.Fatalf("%s: another encoding", format.name)
			}
			if block, ok := got.(Block); ok && err == nil {
				if block.Check(testInst, testQuorum, members) == nil && !known(b) {
					t.Fatal("forged block")
				}
			}
		}
	})
}

// known blocks are the fixtures; one that carries has parts nothing here signs.
func known(b []byte) bool {
	return bytes.Equal(b, formats()[5].example.Bytes()) || bytes.Contains(b, []byte(carriedName))
}
