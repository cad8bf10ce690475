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

// Provision makes a device in the TPM and returns what a roster pins of it and the
// public half of its agreement key. The device is in update mode with zero slots.
// It is of profile measured if the target has approvals, one of which must be of
// the present boot: ErrBoot says that none is.
//
// It takes the whole owner hierarchy: in the end owner and lockout
// authorisations are random and forgotten, so that nobody can remove or remake
// the indexes, short of a TPM clear in the firmware, which destroys the key. A
// TPM that holds a device already is left alone, and an error that unwraps to
// fs.ErrExist returned.
func Provision(ctx context.Context, t Target, rand io.Reader) (trust.Identity, ed25519.PublicKey, error) {
	id, key, err := provision(ctx, t, rand)
	if err != nil {
		return trust.Identity{}, nil, fmt.Errorf("provision tpm: %w", err)
	}
	return id, key, nil
}

func provision(ctx context.Context, t Target, rand io.Reader) (id trust.Identity, key ed25519.PublicKey, err error) {
	boot, err := newCondition(t.Approvals)
	if err != nil {
		return id, nil, err
	}
	l, err := newLine(t)
	if err != nil {
		return id, nil, err
	}
	defer l.close()
	secret := make([]byte, ed25519.SeedSize+2*authSize)
	if _, err := io.ReadFull(rand, secret); err != nil {
		return id, nil, err
	}
	seed := secret[:ed25519.SeedSize]
	err = l.do(ctx, func(c transport.TPM) error {
		id, err = build(c, boot, seed, secret[ed25519.SeedSize:])
		return err
	})
	return id, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey), err
}

// build runs the recipe. The order matters: hierarchies are shut last.
func build(c transport.TPM, boot *condition, seed, auths []byte) (id trust.Identity, err error) {
	if err := vacant(c); err != nil {
		return id, err
	}
	if err := platformShut(c); err != nil {
		return id, err
	}
	if err := pinApproval(c, boot, &id); err != nil {
		return id, err
	}
	if err := makeStorageKey(c); err != nil {
		return id, fmt.Errorf("storage root key: %w", err)
	}
	if id.Key, err = makeKey(c); err != nil {
		return id, fmt.Errorf("attestation key: %w", err)
	}
	if err := makeIndexes(c, boot, seed); err != nil {
		return id, err
	}
	if err := pin(c, &id); err != nil {
		return id, err
	}
	return id, shutHierarchies(c, auths)
}

func vacant(c transport.TPM) error {
	err := (&MAS{}).find(c)
	if err == nil {
		return fmt.Errorf("there is a device already: %w", fs.ErrExist)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// platformShut makes sure that the firmware has closed the platform hierarchy,
// which can remove any index and move the clock. With the empty authorisation,
// setting it to empty again changes nothing.
func platformShut(c transport.TPM) error {
	if _, err := changeAuth(c, tpm2.TPMRHPlatform, nil); err == nil {
		return errors.New("platform authorisation is empty: the firmware did not close it, and anyone could remake the device")
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

func shutHierarchies(c transport.TPM, auths []byte) error {
	if _, err := changeAuth(c, tpm2.TPMRHLockout, auths[:authSize]); err != nil {
		return fmt.Errorf("shut lockout: %w", err)
	}
	if _, err := changeAuth(c, tpm2.TPMRHOwner, auths[authSize:]); err != nil {
		return fmt.Errorf("shut owner hierarchy: %w", err)
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
	_, err = makePrimary(c, tpm2.ECCSRKTemplate, storageKey)
	return err
}

// makeKey makes the attestation key and returns its public area. It lives in
// the owner hierarchy, so that TPM2_Clear destroys it with the indexes.
func makeKey(c transport.TPM) ([]byte, error) { return makePrimary(c, keyTemplate(), KeyHandle) }

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

// makePrimary makes an owner-hierarchy primary key, keeps it at handle, and
// returns its public area.
func makePrimary(c transport.TPM, template tpm2.TPMTPublic, handle tpm2.TPMHandle) ([]byte, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(c)
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return nil, fmt.Errorf("owner authorisation is set: clear the TPM in the firmware first: %w", err)
	}
	if err != nil {
		return nil, err
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
		PersistentHandle: handle,
	}.Execute(c)
	_, flushErr := tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(c)
	return bytes.Clone(rsp.OutPublic.Bytes()), errors.Join(err, flushErr)
}

// makeIndexes defines the three indexes and writes each once. The agreement
// seed is write-locked for good.
func makeIndexes(c transport.TPM, boot *condition, seed []byte) error {
	for _, x := range []tpm2.TPMSNVPublic{
		{NVIndex: SlotsIndex, DataSize: trust.SlotsSize, Attributes: tpm2.TPMANV{WriteSTClear: true}},
		{NVIndex: CounterIndex, DataSize: counterSize, Attributes: tpm2.TPMANV{WriteSTClear: true, NT: tpm2.TPMNTCounter}},
		{NVIndex: AgreementIndex, DataSize: ed25519.SeedSize, Attributes: tpm2.TPMANV{WriteDefine: true, ReadSTClear: true}},
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

func define(c transport.TPM, x tpm2.TPMSNVPublic, boot *condition) error {
	p, err := newPolicy(writer(x.NVIndex), boot)
	if err != nil {
		return err
	}
	x.NameAlg = tpm2.TPMAlgSHA256
	x.Attributes.PolicyWrite, x.Attributes.AuthRead, x.Attributes.NoDA = true, true, true
	if x.AuthPolicy, err = p.digest(); err != nil {
		return err
	}
	_, err = tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(x),
	}.Execute(c)
	return err
}

// pin fills in what a verifier has to know of the indexes, and holds it against
// the verifier's own idea of the profile.
func pin(c transport.TPM, id *trust.Identity) error {
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
	id.SlotsPublic, id.CounterPublic = slots.area, counter.area
	id.CounterBase = binary.BigEndian.Uint64(base)
	return id.Check()
}
