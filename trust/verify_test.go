package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
)

func TestVerifyTPM(t *testing.T) {
	f := newFakeTPM(t)
	n := Nonce{1, 2, 3}
	for _, mode := range []Mode{ModeUpdate, ModeService} {
		s, c := f.claims(n)
		if mode == ModeService {
			s.index, c.index = locked(s.index), locked(c.index)
		}
		got, err := f.id.Verify(f.attest(t, Path{}, s, c), n)
		want := Statement{
			Mode: mode, Slots: Slots{Epoch: 5}, Counter: 5, Clock: 1000,
			Counts: Counts{Reset: 3, Restart: 4}, Safe: true,
		}
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

// Each of these is signed by the right key and still proves nothing. Every
// check of the verifier has a row that only it refuses.
func TestVerifyTPMRefuses(t *testing.T) {
	f := newFakeTPM(t)
	for _, c := range []struct {
		name   string
		change func(s, c *claim)
		reason string
	}{
		{"made up, not by the TPM", func(s, c *claim) { s.magic++ }, "not a TPM's certification"},
		{"a quote", func(s, c *claim) { s.kind = 0x8018 }, "not a TPM's certification"},
		{"key of another hierarchy", func(s, c *claim) {
			s.signer = nameOf(append(be32(0x4000000B), nameOf(f.id.Key)...))
		}, "slots: key is not in the owner hierarchy"},
		{"counter by a key of another hierarchy", func(s, c *claim) {
			c.signer = nameOf(append(be32(0x4000000C), nameOf(f.id.Key)...))
		}, "counter: key is not in the owner hierarchy"},
		{"slots for another nonce", func(s, c *claim) { s.extra = make([]byte, 32) }, "slots: answers another nonce"},
		{"counter for another nonce", func(s, c *claim) { c.extra = make([]byte, 32) }, "counter: answers another nonce"},
		{"no nonce", func(s, c *claim) { s.extra, c.extra = nil, nil }, "answers another nonce"},
		{"nonce with more", func(s, c *claim) { s.extra = append(s.extra[:32:32], 0) }, "answers another nonce"},
		{"offset", func(s, c *claim) { s.offset = 1 }, "covers a part"},
		{"too few slots", func(s, c *claim) { s.data = s.data[:SlotsSize-1] }, "covers a part"},
		{"short counter", func(s, c *claim) { c.data = c.data[:7] }, "covers a part"},
		{"slots twice", func(s, c *claim) { *c = *s }, "counter: covers a part"},
		{"counter twice", func(s, c *claim) { *s = *c }, "slots: covers a part"},
		{"another index", func(s, c *claim) { s.index[3]++ }, "slots: index is not the pinned one"},
		{"another counter", func(s, c *claim) { c.index[3]++ }, "counter: index is not the pinned one"},
		{"an index that the owner may write", func(s, c *claim) { s.index[9] |= 2 }, "index is not the pinned one"},
		{"an index never written", func(s, c *claim) { s.index[6] &^= 0x20 }, "index is not the pinned one"},
		{"slots locked, counter open", func(s, c *claim) { s.index = locked(s.index) }, "counter in update mode"},
		{"counter locked, slots open", func(s, c *claim) { c.index = locked(c.index) }, "counter in service mode"},
		{"a reset between", func(s, c *claim) { c.counts.Reset++ }, "different boots"},
		{"a restart between", func(s, c *claim) { c.counts.Restart++ }, "different boots"},
		{"counter first", func(s, c *claim) { c.clock = s.clock - 1 }, "before the slots"},
		{"counter below its base", func(s, c *claim) { binary.BigEndian.PutUint64(c.data, 16) }, "below its base"},
		{"spare bytes of the slots used", func(s, c *claim) { s.data[SlotsSize-1] = 1 }, "spare bytes"},
		{"safe is neither yes nor no", func(s, c *claim) { s.safe = 2 }, "neither 0 nor 1"},
		{"trailing bytes", func(s, c *claim) { c.more = []byte{0} }, "trailing bytes"},
		{"long name", func(s, c *claim) { s.signer = make([]byte, 35) }, "too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := Nonce{9}
			slots, counter := f.claims(n)
			for _, x := range []*claim{&slots, &counter} {
				x.index, x.data = append([]byte(nil), x.index...), append([]byte(nil), x.data...)
			}
			c.change(&slots, &counter)
			_, err := f.id.Verify(f.attest(t, Path{}, slots, counter), n)
			if !errors.Is(err, ErrAttestation) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v, want ...%s...", err, c.reason)
			}
		})
	}
}

func TestVerifyTPMSignature(t *testing.T) {
	f, other := newFakeTPM(t), newFakeTPM(t)
	n := Nonce{9}
	s, c := f.claims(n)
	for name, a := range map[string]Attestation{
		"slots by another":   encode(t, other.sign(t, s), f.sign(t, c)),
		"counter by another": encode(t, f.sign(t, s), other.sign(t, c)),
		"swapped":            encode(t, f.sign(t, c), f.sign(t, s)),
		"zero":               encode(t, Certified{Attest: s.bytes()}, f.sign(t, c)),
	} {
		if _, err := f.id.Verify(a, n); !errors.Is(err, ErrAttestation) {
			t.Errorf("%s: got %v, want ErrAttestation", name, err)
		}
	}
}

func encode(t *testing.T, slots, counter Certified) Attestation {
	t.Helper()
	a, err := encodeTPM(Path{}, slots, counter)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Of the two forms of a signature only one is let through, so that nobody
// between device and verifier can change the bytes of an attestation.
func TestSignatureHasOneForm(t *testing.T) {
	f := newFakeTPM(t)
	n := Nonce{9}
	slots, counter := f.claims(n)
	a := f.attest(t, Path{}, slots, counter)
	if _, err := f.id.Verify(a, n); err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(a[len(a)-32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(a[len(a)-32:])
	if _, err := f.id.Verify(a, n); err == nil || !strings.Contains(err.Error(), "canonical") {
		t.Errorf("got %v, want a refusal of the other form", err)
	}
}

// SignTPM refuses what the format has no room for, and never cuts it.
func TestSignTPMBounds(t *testing.T) {
	for _, c := range []Certified{
		{Attest: make([]byte, maxAttest+1)}, {R: make([]byte, 33)}, {S: make([]byte, 33)},
	} {
		if _, err := encodeTPM(Path{}, c, Certified{}); err == nil {
			t.Errorf("encoded %d, %d, %d bytes", len(c.Attest), len(c.R), len(c.S))
		}
	}
}

// tree folds nonces of callers into one root, as a batching device would.
func tree(nonces []Nonce) (root [32]byte, paths []Path) {
	level := make([][32]byte, len(nonces))
	at := make([]int, len(nonces)) // each nonce's place in level
	paths = make([]Path, len(nonces))
	for i, n := range nonces {
		level[i], at[i] = leaf(n), i
	}
	for len(level) > 1 {
		for i := range nonces {
			if sib := at[i] ^ 1; sib < len(level) {
				paths[i].Sides |= uint16(at[i]&1) << len(paths[i].Siblings)
				paths[i].Siblings = append(paths[i].Siblings, level[sib])
			}
			at[i] /= 2
		}
		var up [][32]byte
		for i := 0; i < len(level); i += 2 {
			if i+1 == len(level) {
				up = append(up, level[i])
			} else {
				up = append(up, node(level[i], level[i+1]))
			}
		}
		level = up
	}
	return level[0], paths
}

// One signature answers many nonces, each along its own path and no other.
func TestNoncePath(t *testing.T) {
	f := newFakeTPM(t)
	for _, count := range []int{1, 2, 3, 5, 8, 13} {
		nonces := make([]Nonce, count)
		for i := range nonces {
			nonces[i] = Nonce{byte(i + 1)}
		}
		root, paths := tree(nonces)
		slots, counter := f.claims(Nonce{})
		slots.extra, counter.extra = root[:], root[:]
		a, b := f.sign(t, slots), f.sign(t, counter)
		for i, p := range paths {
			att, err := encodeTPM(p, a, b)
			if err != nil {
				t.Fatal(err)
			}
			for j, n := range nonces {
				if _, err := f.id.Verify(att, n); (err == nil) != (i == j) {
					t.Errorf("%d nonces, path of %d, nonce %d: %v", count, i, j, err)
				}
			}
		}
	}
}

func TestPathBounds(t *testing.T) {
	f := newFakeTPM(t)
	n := Nonce{1}
	for _, c := range []struct {
		p  Path
		ok bool
	}{
		{Path{Siblings: make([][32]byte, maxDepth)}, true},
		{Path{Siblings: make([][32]byte, maxDepth), Sides: 1<<16 - 1}, true},
		{Path{Siblings: make([][32]byte, maxDepth+1)}, false},
		{Path{Siblings: make([][32]byte, 3), Sides: 8}, false},
		{Path{Sides: 1}, false},
	} {
		root := c.p.Root(n)
		s, k := f.claims(n)
		s.extra, k.extra = root[:], root[:]
		a := f.attest(t, c.p, s, k)
		if _, err := f.id.Verify(a, n); (err == nil) != c.ok {
			t.Errorf("depth %d, sides %b: got %v", len(c.p.Siblings), c.p.Sides, err)
		}
		if c.ok && len(a) > MaxAttestation {
			t.Errorf("%d bytes, more than MaxAttestation", len(a))
		}
	}
}

func TestVerifySoftware(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{Profile: ProfileSoftware, Key: pub}
	want := Statement{
		Mode: ModeService, Slots: Slots{Epoch: 3, Archive: [32]byte{1}}, Counter: 4,
		Clock: 5, Counts: Counts{Reset: 6, Restart: 7},
	}
	n := Nonce{8}
	got, err := id.Verify(EncodeSoftware(key, want, n), n)
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	want.Mode = 3
	if _, err := id.Verify(EncodeSoftware(key, want, n), n); !errors.Is(err, ErrAttestation) {
		t.Errorf("third mode: got %v, want ErrAttestation", err)
	}
}

// Software never passes for a TPM, nor the other way round.
func TestFormsDoNotMix(t *testing.T) {
	f := newFakeTPM(t)
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := Nonce{1}
	s, c := f.claims(n)
	soft := Identity{Profile: ProfileSoftware, Key: pub}
	if _, err := soft.Verify(f.attest(t, Path{}, s, c), n); err == nil || !strings.Contains(err.Error(), "not made by a software device") {
		t.Errorf("tpm for software: got %v", err)
	}
	a := EncodeSoftware(key, Statement{Mode: ModeUpdate}, n)
	if _, err := f.id.Verify(a, n); err == nil || !strings.Contains(err.Error(), "not made by a TPM") {
		t.Errorf("software for tpm: got %v", err)
	}
	if _, err := soft.Verify(make(Attestation, MaxAttestation+1), n); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too long: got %v", err)
	}
}

func TestIdentityCheck(t *testing.T) {
	f := newFakeTPM(t)
	operator, e := approved(t)
	lock := indexPolicy([32]byte{}, ccWrite)
	for _, c := range []struct {
		name   string
		change func(id *Identity)
		ok     bool
	}{
		{"as made", func(id *Identity) {}, true},
		{"measured", func(id *Identity) { measure(id, e) }, true},
		{"measured, no evidence", func(id *Identity) { measure(id, e); id.Evidence = nil }, false},
		{"measured, approver of another", func(id *Identity) {
			_, other := approved(t)
			measure(id, e)
			id.Evidence = other.Bytes()
		}, false},
		{"measured, first boot approved by another", func(id *Identity) {
			_, other := approved(t)
			measure(id, Evidence{e.Approver, other.First})
		}, false},
		{"measured, another boot than the approved", func(id *Identity) {
			other := e
			other.First.Boot.Registers[1] ^= 1
			measure(id, other)
		}, false},
		{"measured, approver off the curve", func(id *Identity) {
			other := e
			other.Approver[63] ^= 1
			measure(id, other)
		}, false},
		{"measured by no register", func(id *Identity) {
			measure(id, approve(t, operator, Boot{Digest: e.First.Boot.Digest}))
		}, false},
		{"measured, bound to one boot for good", func(id *Identity) {
			measureBy(id, extend([32]byte{}, ccPolicyPCR, e.First.Boot.bytes()), e)
		}, false},
		{"lock that says measured", func(id *Identity) { id.Profile, id.Evidence = ProfileMeasured, e.Bytes() }, false},
		{"no profile", func(id *Identity) { id.Profile = "" }, false},
		{"a profile of the future", func(id *Identity) { id.Profile = "quantum" }, false},
		{"software with indexes", func(id *Identity) { id.Profile = ProfileSoftware; id.Key = make([]byte, 32) }, false},
		{"no key", func(id *Identity) { id.Key = nil }, false},
		{"key not restricted", func(id *Identity) { id.Key = publicArea(t, f.key, keyAttributes&^(1<<16)) }, false},
		{"key from elsewhere", func(id *Identity) { id.Key = publicArea(t, f.key, keyAttributes&^(1<<1)) }, false},
		{"key that decrypts", func(id *Identity) { id.Key = publicArea(t, f.key, keyAttributes|1<<17) }, false},
		{"key off the curve", func(id *Identity) { id.Key[len(id.Key)-1] ^= 1 }, false},
		{"key of another name algorithm", func(id *Identity) { id.Key[3] = 0x0C }, false},
		{"key with a policy", func(id *Identity) {
			id.Key = append(append(append([]byte(nil), id.Key[:8]...), 0, 1, 0), id.Key[10:]...)
		}, false},
		{"key with a symmetric algorithm", func(id *Identity) { id.Key[11] = 6 }, false},
		{"key of another scheme", func(id *Identity) { id.Key[13] = 0x1A }, false},
		{"key that signs SHA-1", func(id *Identity) { id.Key[15] = 4 }, false},
		{"key on another curve", func(id *Identity) { id.Key[17] = 4 }, false},
		{"key with a KDF", func(id *Identity) { id.Key[19] = 0x20 }, false},
		{"RSA key", func(id *Identity) { id.Key[1] = 1 }, false},
		{"slots of another name algorithm", func(id *Identity) { id.SlotsPublic[5] = 4 }, false},
		{"measured by SHA-1", func(id *Identity) { measure(id, e); id.Evidence[64+5] = 4 }, false},
		{"measured by two banks", func(id *Identity) { measure(id, e); id.Evidence[64+3] = 2 }, false},
		{"measured by more registers than there are", func(id *Identity) { measure(id, e); id.Evidence[64+6] = 4 }, false},
		{"measured with more", func(id *Identity) { measure(id, e); id.Evidence = append(id.Evidence, 0) }, false},
		{"measured with less", func(id *Identity) { measure(id, e); id.Evidence = id.Evidence[:len(id.Evidence)-1] }, false},
		{"key with more", func(id *Identity) { id.Key = append(id.Key, 0) }, false},
		{"slots the owner may write", func(id *Identity) {
			id.SlotsPublic = indexArea(0x0181B0F1, indexAttributes|2, lock, SlotsSize)
		}, false},
		{"slots without the lock", func(id *Identity) {
			id.SlotsPublic = indexArea(0x0181B0F1, indexAttributes&^(1<<14), lock, SlotsSize)
		}, false},
		{"slots pinned in service mode", func(id *Identity) { id.SlotsPublic = locked(id.SlotsPublic) }, false},
		{"slots of another policy", func(id *Identity) {
			id.SlotsPublic = indexArea(0x0181B0F1, indexAttributes, make([]byte, 32), SlotsSize)
		}, false},
		{"slots of another size", func(id *Identity) {
			id.SlotsPublic = indexArea(0x0181B0F1, indexAttributes, lock, SlotsSize+1)
		}, false},
		{"slots at a key's handle", func(id *Identity) {
			id.SlotsPublic = indexArea(0x8101B0F1, indexAttributes, lock, SlotsSize)
		}, false},
		{"counter that does not count", func(id *Identity) {
			id.CounterPublic = indexArea(0x0181B0F2, indexAttributes, indexPolicy([32]byte{}, ccIncrement), 8)
		}, false},
		{"counter that can be written", func(id *Identity) {
			id.CounterPublic = indexArea(0x0181B0F2, indexAttributes|typeCounter, lock, 8)
		}, false},
		{"one index for both", func(id *Identity) { copy(id.CounterPublic, id.SlotsPublic[:4]) }, false},
		{"endless evidence", func(id *Identity) { id.Evidence = make([]byte, maxEvidence+1) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := clone(f.id)
			c.change(&id)
			if err := id.Check(); (err == nil) != c.ok {
				t.Errorf("got %v, want ok %v", err, c.ok)
			}
		})
	}
}

func measure(id *Identity, e Evidence) { measureBy(id, e.Approver.branch(), e) }

func measureBy(id *Identity, branch [32]byte, e Evidence) {
	id.Profile, id.Evidence = ProfileMeasured, e.Bytes()
	id.SlotsPublic = indexArea(0x0181B0F1, indexAttributes, indexPolicy(branch, ccWrite), SlotsSize)
	id.CounterPublic = indexArea(0x0181B0F2, indexAttributes|typeCounter, indexPolicy(branch, ccIncrement), counterSize)
}

// approved is a new operator's key, and the evidence of a boot that it approves.
func approved(t testing.TB) (*ecdsa.PrivateKey, Evidence) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := NewBoot(map[int][32]byte{7: {7}, 11: {11}})
	if err != nil {
		t.Fatal(err)
	}
	return key, approve(t, key, boot)
}

func approve(t testing.TB, key *ecdsa.PrivateKey, b Boot) Evidence {
	t.Helper()
	by, err := ApproverOf(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Approve(key, b)
	if err != nil {
		t.Fatal(err)
	}
	return Evidence{by, a}
}

func clone(id Identity) Identity {
	id.Key = append([]byte(nil), id.Key...)
	id.SlotsPublic = append([]byte(nil), id.SlotsPublic...)
	id.CounterPublic = append([]byte(nil), id.CounterPublic...)
	return id
}

func TestIdentityJSON(t *testing.T) {
	id := newFakeTPM(t).id
	b, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	var got Identity
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, id) {
		t.Errorf("got %+v, want %+v", got, id)
	}
}

func TestShortCoordinates(t *testing.T) {
	for {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		area := publicArea(t, key, keyAttributes)
		if x := len(area) - 66; area[x] != 0 { // a chip may leave the zero out
			continue
		}
		x := len(area) - 66
		area = append(append(append([]byte(nil), area[:x-2]...), 0, 31), area[x+1:]...)
		got, err := parseKey(area)
		if err != nil || !got.Equal(&key.PublicKey) {
			t.Errorf("got %v, %v", got, err)
		}
		return
	}
}
