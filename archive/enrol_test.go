package archive_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

var enrolSecret = sha256.Sum256([]byte("a secret for the tests"))

// enrolled is the enrolment of replica 1 and the answer of its device.
func enrolled(t testing.TB, w *forge.World, st trust.Statement) (archive.Enrolment, archive.Activation) {
	t.Helper()
	e, err := archive.NewEnrolment(w.Roster.Replicas[0], nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e, archive.NewActivation(e.ID(), w.Attest(1, archive.ActivationNonce(e.ID(), enrolSecret), st))
}

func TestActivation(t *testing.T) {
	w := world()
	e, a := enrolled(t, w, trust.Statement{Mode: trust.ModeUpdate})
	check(t, "activation", a.Verify(e, enrolSecret))
	_, locked := enrolled(t, w, trust.Statement{Mode: trust.ModeService})
	check(t, "in service mode", locked.Verify(e, enrolSecret))

	_, used := enrolled(t, w, trust.Statement{Mode: trust.ModeUpdate, Counter: 1})
	_, serving := enrolled(t, w, trust.Statement{Mode: trust.ModeUpdate, Slots: trust.Slots{Archive: w.Roster.ID()}})
	moved := e
	moved.Replica.Address = "127.0.0.1:9" // the device vouches for the whole entry
	relabelled := archive.NewActivation(moved.ID(), a.Attestation)
	foreign := a
	foreign.Attestation = w.Attest(2, archive.ActivationNonce(e.ID(), enrolSecret), trust.Statement{Mode: trust.ModeUpdate})
	for name, err := range map[string]error{
		"counter has moved":   used.Verify(e, enrolSecret),
		"serves an archive":   serving.Verify(e, enrolSecret),
		"another secret":      a.Verify(e, sha256.Sum256(nil)),
		"another enrolment":   a.Verify(moved, enrolSecret),
		"under another label": relabelled.Verify(moved, enrolSecret),
		"another device":      foreign.Verify(e, enrolSecret),
	} {
		if !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// withTPM is a roster whose replicas 1 and 2 have TPMs: the device of the
// vectors, and one whose key differs.
func withTPM(t *testing.T) *archive.Roster {
	t.Helper()
	r := world().Roster
	r.Replicas[0].MAS = trusttest.ReadVectors(t, "../trust/testdata/swtpm.json")[0].Identity
	r.Replicas[0].EK = archive.DigestOf([]byte("one endorsement key"))
	check(t, "roster", r.Check())
	return r
}

// One device counts once: neither the key, nor the TPM, nor the machine's other
// keys stand in two entries, whatever else differs.
func TestNoCuckoo(t *testing.T) {
	for name, change := range map[string]func(r *archive.Roster){
		"MAS key":       func(r *archive.Roster) { r.Replicas[1].MAS.Key = r.Replicas[2].MAS.Key },
		"agreement key": func(r *archive.Roster) { r.Replicas[1].Key = r.Replicas[2].Key },
		"TLS key":       func(r *archive.Roster) { r.Replicas[1].TLS = r.Replicas[2].TLS },
		"MAS key ": func(r *archive.Roster) { // of a TPM, though the indexes and the chip are said to be others
			m := r.Replicas[0].MAS
			m.CounterBase++
			r.Replicas[1].MAS, r.Replicas[1].EK = m, archive.DigestOf([]byte("another"))
		},
	} {
		r := withTPM(t)
		change(r)
		err := r.Check()
		if !errors.Is(err, archive.ErrRoster) || !strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	r := withTPM(t)
	other := r.Replicas[0].MAS
	other.Key = bytes.Clone(other.Key)
	copy(other.Key[len(other.Key)-66:], anotherPoint(t)) // a second attestation key in the same TPM
	r.Replicas[1].MAS, r.Replicas[1].EK = other, archive.DigestOf([]byte("another"))
	check(t, "two TPMs", r.Check())
	r.Replicas[1].EK = r.Replicas[0].EK
	if err := r.Check(); !errors.Is(err, archive.ErrRoster) || !strings.Contains(err.Error(), "endorsement key") {
		t.Errorf("endorsement key: got %v", err)
	}
}

// anotherPoint is the end of a TPMT_PUBLIC: another key of the vectors of
// package trust, or else the point with the other root as its y.
func anotherPoint(t testing.TB) []byte {
	t.Helper()
	key := trusttest.ReadVectors(t, "../trust/testdata/swtpm.json")[0].Identity.Key
	end := bytes.Clone(key[len(key)-66:])
	p, _ := new(big.Int).SetString("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff", 16)
	y := new(big.Int).SetBytes(end[len(end)-32:])
	p.Sub(p, y).FillBytes(end[len(end)-32:])
	return end[:66]
}

// An endorsement key stands with a TPM, and with nothing else.
func TestEndorsementAndProfile(t *testing.T) {
	r := withTPM(t)
	r.Replicas[0].EK = archive.Digest{}
	if err := r.Check(); !errors.Is(err, archive.ErrRoster) {
		t.Errorf("TPM without: got %v", err)
	}
	r = world().Roster
	r.Replicas[0].EK = archive.DigestOf([]byte("x"))
	if err := r.Check(); !errors.Is(err, archive.ErrRoster) {
		t.Errorf("software with: got %v", err)
	}
	m := withTPM(t).Replicas[0]
	for name, parts := range map[string][2][]byte{"none": {}, "certificate alone": {nil, {1}}, "long": {make([]byte, 2000), nil}, "long certificate": {{1}, make([]byte, 9000)}} {
		if _, err := archive.NewEnrolment(m, parts[0], parts[1]); !errors.Is(err, archive.ErrFormat) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestCountersignatures(t *testing.T) {
	w := world()
	var text strings.Builder
	for id := uint32(1); id <= 3; id++ {
		text.WriteString(archive.Countersign(w.Key("tls", id), id, w.Roster).String() + "\n")
	}
	all, err := archive.ParseCountersignatures([]byte(text.String()))
	check(t, "parse", err)
	missing, err := w.Roster.Uncountersigned(all)
	if err != nil || len(missing) != 1 || missing[0] != 4 {
		t.Errorf("missing %v, %v", missing, err)
	}
	good := all[0]
	other := *w.Roster
	other.Name = "other"
	renamed, rekeyed, spoilt := good, good, good
	renamed.Replica = 2
	rekeyed.Key = archive.PublicKey(w.Stranger.Public().(ed25519.PublicKey))
	spoilt.Signature = append([]byte{good.Signature[0] ^ 1}, good.Signature[1:]...)
	for name, c := range map[string]archive.Countersignature{
		"other roster":    archive.Countersign(w.Key("tls", 1), 1, &other),
		"other replica":   renamed,
		"not in roster":   archive.Countersign(w.Key("tls", 1), 5, w.Roster),
		"stranger":        archive.Countersign(w.Stranger, 1, w.Roster),
		"agreement key":   archive.Countersign(w.Key("agreement", 1), 1, w.Roster),
		"stranger's name": rekeyed,
		"signature":       spoilt,
		"nothing":         {},
	} {
		if err := c.Verify(w.Roster); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := w.Roster.Uncountersigned([]archive.Countersignature{good, c}); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s among others: got %v", name, err)
		}
	}
	line := good.String() + "\n"
	for _, bad := range []string{"\n", good.String(), line + "x\n", strings.Replace(line, " 1 ", " 01 ", 1), strings.Replace(line, " 1 ", " +1 ", 1),
		strings.Replace(line, " ", "  ", 1), strings.Replace(line, "/v1", "/v2", 1), strings.ToUpper(line), strings.Replace(line, "\n", " \n", 1), strings.Repeat(line, 100)} {
		if _, err := archive.ParseCountersignatures([]byte(bad)); !errors.Is(err, archive.ErrFormat) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

// enrolSwtpm writes the vectors: the enrolment of a new swtpm as replica 1, a
// challenge to it, and its answer.
func enrolSwtpm(t *testing.T) {
	dir := t.TempDir()
	s, err := tpm.StartSwtpm(t.Context(), dir+"/mas", dir+"/run")
	must(t, err)
	defer s.Stop()
	ek, err := tpm.ReadEndorsement(t.Context(), s.Target())
	must(t, err)
	sum, err := ek.Digest()
	must(t, err)
	m := world().Roster.Replicas[0]
	id, key, err := tpm.Provision(t.Context(), s.Target(), tpm.Setup{}, rand.Reader)
	must(t, err)
	m.MAS, m.Key, m.EK = id, archive.PublicKey(key), sum
	e, err := archive.NewEnrolment(m, ek.Public, ek.Certificate)
	must(t, err)
	cred, err := ek.Seal(rand.Reader, id, enrolSecret)
	must(t, err)
	mas, err := tpm.Open(t.Context(), s.Target())
	must(t, err)
	defer mas.Close()
	at, err := mas.Lookup(t.Context(), archive.ActivationNonce(e.ID(), enrolSecret))
	must(t, err)
	for name, v := range map[string]interface{ Bytes() []byte }{"enrolment": e,
		"challenge": archive.NewChallenge(e, cred.Blob, cred.Secret), "activation": archive.NewActivation(e.ID(), at)} {
		must(t, os.WriteFile("testdata/"+name+".json", v.Bytes(), 0o644))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The vectors are the enrolment of a real swtpm. That it has opened the
// challenge shows in its answer alone.
func TestEnrolmentVectors(t *testing.T) {
	if *update {
		enrolSwtpm(t)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile("testdata/" + name)
		check(t, name, err)
		return b
	}
	e, err := archive.ParseEnrolment(read("enrolment.json"))
	check(t, "enrolment", err)
	c, err := archive.ParseChallenge(read("challenge.json"))
	check(t, "challenge", err)
	a, err := archive.ParseActivation(read("activation.json"))
	check(t, "activation", err)
	if c.Enrolment != e.ID() || !bytes.Equal(c.Bytes(), read("challenge.json")) {
		t.Error("the challenge is to another enrolment")
	}
	check(t, "answer", a.Verify(e, enrolSecret))
	ek := tpm.Endorsement{Public: e.EK, Certificate: e.Certificate}
	if sum, err := ek.Digest(); err != nil || archive.Digest(sum) != e.Replica.EK {
		t.Errorf("endorsement key %x, %v", sum, err)
	}
	for i := range a.Attestation {
		bad := a
		bad.Attestation = bytes.Clone(a.Attestation)
		bad.Attestation[i] ^= 1
		if err := bad.Verify(e, enrolSecret); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("byte %d of the attestation changed: got %v", i, err)
		}
	}
}

func FuzzEnrolment(f *testing.F) {
	w := world()
	e, a := enrolled(f, w, trust.Statement{Mode: trust.ModeUpdate})
	f.Add(a.Bytes())
	f.Add(archive.NewChallenge(e, []byte("a"), []byte("b")).Bytes())
	f.Add([]byte(archive.Countersign(w.Key("tls", 1), 1, w.Roster).String() + "\n"))
	fuzz(f, e.Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		if a, err := archive.ParseActivation(b); err == nil {
			a.Verify(e, enrolSecret)
			return a, nil
		}
		if c, err := archive.ParseChallenge(b); err == nil {
			return c, nil
		}
		if all, err := archive.ParseCountersignatures(b); err == nil {
			w.Roster.Uncountersigned(all)
			return lines(all), nil
		}
		return parsed(archive.ParseEnrolment(b))
	})
}

type lines []archive.Countersignature

func (l lines) Bytes() (b []byte) {
	for _, c := range l {
		b = append(b, c.String()+"\n"...)
	}
	return b
}

// One device's vote counts for its own replica, and its word for a head too,
// though the nonces of votes are the same for all.
func TestBorrowedVote(t *testing.T) {
	w := world()
	e := w.Newest()
	cert := w.Certify(e.Record, 1, 1, 2, 3)
	check(t, "certificate", cert.Verify(w.Roster, e.Record))
	cert.Votes[2].Attestation = cert.Votes[1].Attestation
	if err := cert.Verify(w.Roster, e.Record); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("one device as two voters: %v", err)
	}
	cert.Votes[2] = cert.Votes[1]
	if err := cert.Verify(w.Roster, e.Record); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("one voter twice: %v", err)
	}
	rc := receiptOf(w)
	rc.Attestations[1].Attestation = rc.Attestations[0].Attestation
	if _, _, err := rc.Verify(w.Roster); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("one device as two witnesses: %v", err)
	}
}
