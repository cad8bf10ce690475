package tpm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
)

const (
	storageKey = 0x81000001 // where the world expects a storage root key
	authSize   = 32
)

// ErrPlatform says that the firmware left the platform hierarchy open.
var ErrPlatform = errors.New("platform authorisation is empty: the firmware did not close it, and anyone could remake the device")

// A Setup says how Provision goes about it.
type Setup struct {
	// Journal is a file that says which device is being made. It is on the disk
	// before Provision changes anything in the TPM, so that Provision, called again
	// after it was cut off, finishes that device; and it holds no secret. Whoever
	// called removes it once all that Provision returned is kept. Empty: a device
	// that was cut off late is taken for somebody else's.
	Journal string
	// Recovery is a file to be made, as early, for the owner and lockout
	// authorisations, with which the device can be remade. Empty: nobody gets them.
	Recovery string
	// OpenPlatform lets the firmware leave the platform hierarchy open.
	OpenPlatform bool
}

// Provision makes a device in the TPM and returns what a roster pins of it and the
// public half of its agreement key. The device is in update mode with zero slots.
// It is of profile measured if the target has approvals, one of which must be of
// the present boot: ErrBoot says that none is. ErrPlatform says that s does not
// allow for this firmware.
//
// It takes the whole owner hierarchy: in the end owner and lockout
// authorisations are random, and forgotten unless s names a recovery file, so
// that nobody can remove or remake the indexes, short of a TPM clear in the
// firmware, which destroys the key. As long as the owner authorisation is empty
// no device is finished, and what there is of one is made anew, provided that
// its slots are zero. A TPM that holds any other device, and a recovery file
// that is there already, are left alone, and an error that unwraps to
// fs.ErrExist returned.
func Provision(ctx context.Context, t Target, s Setup, rand io.Reader) (trust.Identity, ed25519.PublicKey, error) {
	id, key, err := provision(ctx, t, s, rand)
	if err != nil {
		return trust.Identity{}, nil, fmt.Errorf("provision tpm: %w", err)
	}
	return id, key, nil
}

func provision(ctx context.Context, t Target, s Setup, rand io.Reader) (id trust.Identity, key ed25519.PublicKey, err error) {
	m, err := newMaker(t, s, rand)
	if err != nil {
		return id, nil, err
	}
	err = operate(ctx, t, func(c transport.TPM) error {
		id, key, err = m.make(c)
		return err
	})
	return id, key, err
}

// A maker is one call of Provision.
type maker struct {
	Setup
	boot *condition
	rand io.Reader
}

func newMaker(t Target, s Setup, rand io.Reader) (maker, error) {
	boot, err := newCondition(t.Approvals)
	return maker{s, boot, rand}, err
}

// make finishes the device that an earlier call began, or makes one.
func (m maker) make(c transport.TPM) (id trust.Identity, key ed25519.PublicKey, err error) {
	if !m.OpenPlatform {
		if err := platformShut(c); err != nil {
			return id, nil, err
		}
	}
	if err := pinApproval(c, m.boot, &id); err != nil {
		return id, nil, err
	}
	set, err := readPermanent(c)
	switch {
	case err != nil:
		return id, nil, err
	case set&ownerSet != 0:
		return m.adopt(c, id, set)
	case set&lockoutSet != 0:
		return id, nil, errors.New("lockout authorisation is set: clear the TPM in the firmware first")
	}
	return m.makeNew(c, id)
}

// makeNew runs the recipe. The order matters: hierarchies are shut last.
func (m maker) makeNew(c transport.TPM, id trust.Identity) (trust.Identity, ed25519.PublicKey, error) {
	if err := unused(c); err != nil {
		return id, nil, err
	}
	seed, a, err := m.begin()
	if err != nil {
		return id, nil, err
	}
	if err := dismantle(c); err != nil {
		return id, nil, fmt.Errorf("remove what is unfinished: %w", err)
	}
	if err := makeStorageKey(c); err != nil {
		return id, nil, fmt.Errorf("storage root key: %w", err)
	}
	if err := makePrimary(c, keyTemplate(), KeyHandle); err != nil {
		return id, nil, fmt.Errorf("attestation key: %w", err)
	}
	if err := makeIndexes(c, m.boot, seed); err != nil {
		return id, nil, err
	}
	if err := pin(c, &id); err != nil {
		return id, nil, err
	}
	return id, agreementKey(seed), shutHierarchies(c, a)
}

func agreementKey(seed []byte) ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// adopt finishes a device whose owner authorisation is set: no more than the
// lockout authorisation can be missing.
func (m maker) adopt(c transport.TPM, id trust.Identity, set permanent) (trust.Identity, ed25519.PublicKey, error) {
	if err := (&MAS{}).find(c); errors.Is(err, fs.ErrNotExist) {
		return id, nil, errors.New("owner authorisation is set: clear the TPM in the firmware first")
	} else if err != nil {
		return id, nil, err
	}
	j, key, err := m.begun(c)
	if err != nil {
		return id, nil, err
	}
	if err := m.fixed(c); err != nil {
		return id, nil, err
	}
	if err := pin(c, &id); err != nil || set&lockoutSet != 0 {
		return id, key, err
	}
	a, err := m.rest(j)
	if err != nil {
		return id, nil, err
	}
	return id, key, shutLockout(c, a)
}

// begun returns the journal and the agreement key, provided that the journal is
// about the device in the TPM, and that nobody has used that yet.
func (m maker) begun(c transport.TPM) (j journal, key ed25519.PublicKey, err error) {
	if j, err = readJournal(m.Journal); errors.Is(err, fs.ErrNotExist) {
		return j, nil, errThere
	} else if err != nil {
		return j, nil, err
	}
	if err := unused(c); err != nil {
		return j, nil, err
	}
	seed, err := readIndex(c, AgreementIndex, ed25519.SeedSize)
	if err != nil {
		return j, nil, fmt.Errorf("agreement key of the unfinished device: %w", modeError(err))
	}
	if key = agreementKey(seed); !bytes.Equal(j.Agreement, key) {
		return j, nil, errThere
	}
	return j, key, j.sameRecovery(m.Recovery)
}

var errThere = fmt.Errorf("there is a device already: %w", fs.ErrExist)

// unused makes sure that there are no slots, or that they hold nothing.
func unused(c transport.TPM) error {
	x, err := lookIndex(c, SlotsIndex)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil
	}
	if err != nil || !x.public.Attributes.Written {
		return err
	}
	b, err := readIndex(c, SlotsIndex, x.public.DataSize)
	if err == nil && !bytes.Equal(b, trust.Slots{}.Bytes()) {
		err = errThere
	}
	return err
}

// fixed makes sure that the index of the agreement key, which no identity pins,
// is as makeIndexes left it.
func (m maker) fixed(c transport.TPM) error {
	x, err := lookIndex(c, AgreementIndex)
	if err != nil {
		return err
	}
	want, err := agreementArea().under(m.boot)
	if err != nil {
		return err
	}
	want.Attributes.Written, want.Attributes.WriteLocked = true, true
	if !bytes.Equal(tpm2.Marshal(want), x.area) {
		return fmt.Errorf("index %#x is not what was made: %w", uint32(AgreementIndex), fs.ErrExist)
	}
	return nil
}

// permanent is TPMA_PERMANENT (Part 2, section 8.6).
type permanent uint32

const (
	ownerSet   permanent = 1 << 0
	lockoutSet permanent = 1 << 2
)

func readPermanent(c transport.TPM) (permanent, error) {
	rsp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTPermanent), PropertyCount: 1,
	}.Execute(c)
	if err != nil {
		return 0, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	if p := list.TPMProperty; len(p) == 1 && p[0].Property == tpm2.TPMPTPermanent {
		return permanent(p[0].Value), nil
	}
	return 0, errors.New("the TPM does not say which authorisations are set")
}

// dismantle removes what there is of an unfinished device. The slots go last:
// they alone could say that it is not one.
func dismantle(c transport.TPM) error {
	if err := evictKey(c); err != nil {
		return err
	}
	for _, h := range []tpm2.TPMHandle{CounterIndex, AgreementIndex, SlotsIndex} {
		if err := undefine(c, h); err != nil {
			return err
		}
	}
	return nil
}

func undefine(c transport.TPM, h tpm2.TPMHandle) error {
	x, err := lookIndex(c, h)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{AuthHandle: byOwner(), NVIndex: x.named()}.Execute(c)
	return err
}

func evictKey(c transport.TPM) error {
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(KeyHandle)}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil
	}
	if err != nil {
		return err
	}
	return evict(c, tpm2.NamedHandle{Handle: KeyHandle, Name: rsp.Name}, KeyHandle)
}

// evict makes a transient object persistent at handle, or a persistent one gone.
func evict(c transport.TPM, object tpm2.NamedHandle, handle tpm2.TPMHandle) error {
	_, err := tpm2.EvictControl{Auth: byOwner(), ObjectHandle: object, PersistentHandle: handle}.Execute(c)
	return err
}

// byOwner is the owner's authorisation while that is empty.
func byOwner() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
}

// platformShut makes sure that the firmware has closed the platform hierarchy,
// which can remove any index and move the clock. With the empty authorisation,
// setting it to empty again changes nothing.
func platformShut(c transport.TPM) error {
	if _, err := changeAuth(c, tpm2.TPMRHPlatform, nil); err == nil {
		return ErrPlatform
	} else if !errors.Is(err, tpm2.TPMRCBadAuth) && !errors.Is(err, tpm2.TPMRCHierarchy) && !errors.Is(err, tpm2.TPMRCValue) {
		return fmt.Errorf("ask for the platform hierarchy: %w", err)
	}
	return nil
}

// changeAuth sets the authorisation of a hierarchy that has none yet.
func changeAuth(c transport.TPM, hierarchy tpm2.TPMHandle, auth []byte) (*tpm2.HierarchyChangeAuthResponse, error) {
	return tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: auth},
	}.Execute(c)
}

// shutHierarchies takes the owner hierarchy first: while that is open, no device
// is finished.
func shutHierarchies(c transport.TPM, a auths) error {
	if _, err := changeAuth(c, tpm2.TPMRHOwner, a.owner); err != nil {
		return fmt.Errorf("shut owner hierarchy: %w", err)
	}
	return shutLockout(c, a)
}

func shutLockout(c transport.TPM, a auths) error {
	if _, err := changeAuth(c, tpm2.TPMRHLockout, a.lockout); err != nil {
		return fmt.Errorf("shut lockout: %w", err)
	}
	return nil
}

// pinApproval fills in the profile, and for measured whose approvals count and
// which lets the first writes happen.
func pinApproval(c transport.TPM, boot *condition, id *trust.Identity) error {
	id.Profile = boot.profile()
	if boot == nil {
		return nil
	}
	first, err := boot.fitting(c)
	id.Evidence = trust.Evidence{Approver: boot.by, First: first}.Bytes()
	return err
}

// makeStorageKey leaves a storage root key for the machine's other users of the
// TPM: after us, nobody can make one.
func makeStorageKey(c transport.TPM) error {
	_, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(storageKey)}.Execute(c)
	if err == nil || !errors.Is(err, tpm2.TPMRCHandle) {
		return err
	}
	return makePrimary(c, tpm2.ECCSRKTemplate, storageKey)
}

// keyTemplate is that of the attestation key. It lives in the owner hierarchy, so
// that TPM2_Clear destroys it with the indexes.
func keyTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA,
					&tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

// makePrimary makes an owner-hierarchy primary key and keeps it at handle.
func makePrimary(c transport.TPM, template tpm2.TPMTPublic, handle tpm2.TPMHandle) error {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: byOwner(), InPublic: tpm2.New2B(template)}.Execute(c)
	if err != nil {
		return err
	}
	err = evict(c, tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, handle)
	return errors.Join(err, flush(c, rsp.ObjectHandle))
}

// An area is the public area of an index, as far as its kind decides it.
type area tpm2.TPMSNVPublic

func agreementArea() area {
	return area{NVIndex: AgreementIndex, DataSize: ed25519.SeedSize, Attributes: tpm2.TPMANV{WriteDefine: true, ReadSTClear: true}}
}

// makeIndexes defines the three indexes and writes each once. The agreement
// seed is write-locked for good.
func makeIndexes(c transport.TPM, boot *condition, seed []byte) error {
	for _, x := range []area{
		{NVIndex: SlotsIndex, DataSize: trust.SlotsSize, Attributes: tpm2.TPMANV{WriteSTClear: true}},
		{NVIndex: CounterIndex, DataSize: counterSize, Attributes: tpm2.TPMANV{WriteSTClear: true, NT: tpm2.TPMNTCounter}},
		agreementArea(),
	} {
		if err := define(c, x, boot); err != nil {
			return fmt.Errorf("define index %#x: %w", uint32(x.NVIndex), err)
		}
	}
	if err := writeSlots(c, trust.Slots{}, boot); err != nil {
		return fmt.Errorf("first store: %w", err)
	}
	if err := increment(c, boot); err != nil {
		return fmt.Errorf("first advance: %w", err)
	}
	if err := writeIndex(c, AgreementIndex, seed, boot); err != nil {
		return fmt.Errorf("write agreement key: %w", err)
	}
	return lockWrites(c, AgreementIndex, boot)
}

// under is x with what all indexes have in common, and the policy by which boot
// restricts its writers.
func (x area) under(boot *condition) (tpm2.TPMSNVPublic, error) {
	p, err := newPolicy(writer(x.NVIndex), boot)
	if err != nil {
		return tpm2.TPMSNVPublic{}, err
	}
	x.NameAlg = tpm2.TPMAlgSHA256
	x.Attributes.PolicyWrite, x.Attributes.AuthRead, x.Attributes.NoDA = true, true, true
	x.AuthPolicy, err = p.digest()
	return tpm2.TPMSNVPublic(x), err
}

func define(c transport.TPM, x area, boot *condition) error {
	public, err := x.under(boot)
	if err != nil {
		return err
	}
	_, err = tpm2.NVDefineSpace{AuthHandle: byOwner(), PublicInfo: tpm2.New2B(public)}.Execute(c)
	return err
}

// pin fills in what a verifier has to know of the key and the indexes, and holds
// it against the verifier's own idea of the profile.
func pin(c transport.TPM, id *trust.Identity) error {
	key, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(KeyHandle)}.Execute(c)
	if err != nil {
		return err
	}
	slots, err := lookIndex(c, SlotsIndex)
	if err != nil {
		return err
	}
	counter, err := lookIndex(c, CounterIndex)
	if err != nil {
		return err
	}
	base, err := readIndex(c, CounterIndex, counterSize)
	if err != nil {
		return err
	}
	id.Key = bytes.Clone(key.OutPublic.Bytes())
	id.SlotsPublic, id.CounterPublic = slots.area, counter.area
	id.CounterBase = binary.BigEndian.Uint64(base)
	return id.Check()
}
