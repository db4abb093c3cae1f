package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// DNField is one field of a distinguished name.
type DNField struct {
	Name  string // openssl's long name (commonName), or a dotted OID
	Value string
}

// DN is a distinguished name in its order.
type DN []DNField

// The fields of a name that policies speak of, in the order in which certificates have them.
const (
	fieldCountry = "countryName"
	fieldCommon  = "commonName"
	fieldEmail   = "emailAddress"
)

// dnAttribute is one kind of field.
type dnAttribute struct {
	long, short string
	oid         string
	max         int  // characters, RFC 5280 appendix A.1
	policy      bool // a policy may speak of it
}

// dnAttributes lists the fields with a name, those of policies in the order of certificates.
func dnAttributes() []dnAttribute {
	return []dnAttribute{
		{fieldCountry, "C", "2.5.4.6", 2, true},
		{"stateOrProvinceName", "ST", "2.5.4.8", 128, true},
		{"localityName", "L", "2.5.4.7", 128, true},
		{"organizationName", "O", "2.5.4.10", 64, true},
		{"organizationalUnitName", "OU", "2.5.4.11", 64, true},
		{fieldCommon, "CN", "2.5.4.3", 64, true},
		{fieldEmail, "emailAddress", "1.2.840.113549.1.9.1", 255, true},
		{"serialNumber", "serialNumber", "2.5.4.5", 64, false},
		{"streetAddress", "street", "2.5.4.9", 128, false},
		{"postalCode", "postalCode", "2.5.4.17", 40, false},
		{"domainComponent", "DC", "0.9.2342.19200300.100.1.25", 63, false},
		{"userId", "UID", "0.9.2342.19200300.100.1.1", 256, false},
		{"title", "title", "2.5.4.12", 64, false},
		{"surname", "SN", "2.5.4.4", 64, false},
		{"givenName", "GN", "2.5.4.42", 64, false},
	}
}

func attributeOf(match func(dnAttribute) bool) (dnAttribute, bool) {
	for _, a := range dnAttributes() {
		if match(a) {
			return a, true
		}
	}
	return dnAttribute{}, false
}

func attributeNamed(name string) (dnAttribute, bool) {
	return attributeOf(func(a dnAttribute) bool {
		return strings.EqualFold(a.long, name) || a.short == name || a.short == strings.ToUpper(name)
	})
}

// PolicyFields lists the fields that a policy may speak of.
func PolicyFields() (names []string) {
	for _, a := range dnAttributes() {
		if a.policy {
			names = append(names, a.long)
		}
	}
	return names
}

// ParseDN reads a name as openssl's -subj takes it: /C=DE/O=Example/CN=db. A backslash takes away the meaning of the
// character after it.
func ParseDN(text string) (DN, error) {
	if text == "" || text[0] != '/' {
		return nil, ErrBadName.WithHint("write it as /C=DE/O=Example/CN=name")
	}
	var dn DN
	var b strings.Builder
	escaped := false
	add := func() error {
		name, value, ok := strings.Cut(b.String(), "=")
		b.Reset()
		a, known := attributeNamed(name)
		switch {
		case !ok || !known:
			return ErrBadName.WithHint("%q is not FIELD=VALUE with a field among C, ST, L, O, OU, CN, emailAddress, serialNumber, street, postalCode, DC, UID, title, SN and GN", name)
		case value == "":
			return nil // as openssl does: an empty value leaves the field out
		}
		dn = append(dn, DNField{a.long, value})
		return dn.check()
	}
	for _, r := range text[1:] {
		switch {
		case escaped:
			b.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == '/':
			if err := add(); err != nil {
				return nil, err
			}
		default:
			b.WriteRune(r)
		}
	}
	if err := add(); err != nil {
		return nil, err
	}
	return dn, nil
}

// NameDN returns the fields of a name in their order.
func NameDN(name pkix.Name) (DN, error) {
	return dnOf(name.ToRDNSequence())
}

// parseRawDN reads an encoded name.
func parseRawDN(raw []byte) (DN, error) {
	var seq pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &seq); err != nil || len(rest) > 0 {
		return nil, ErrBadName.WithHint("the subject cannot be read")
	}
	return dnOf(seq)
}

func dnOf(seq pkix.RDNSequence) (DN, error) {
	var dn DN
	for _, set := range seq {
		for _, at := range set {
			value, ok := at.Value.(string)
			if !ok {
				return nil, ErrBadName.WithHint("the field %s is not text", at.Type)
			}
			if value == "" {
				continue
			}
			name := at.Type.String()
			if a, ok := attributeOf(func(a dnAttribute) bool { return a.oid == name }); ok {
				name = a.long
			}
			dn = append(dn, DNField{name, value})
		}
	}
	return dn, nil
}

// Get returns the values of a field.
func (dn DN) Get(field string) (values []string) {
	for _, f := range dn {
		if f.Name == field {
			values = append(values, f.Value)
		}
	}
	return values
}

// CommonName returns the first common name; empty without one.
func (dn DN) CommonName() string {
	if v := dn.Get(fieldCommon); len(v) > 0 {
		return v[0]
	}
	return ""
}

// String writes dn as ParseDN reads it.
func (dn DN) String() string {
	var b strings.Builder
	for _, f := range dn {
		b.WriteByte('/')
		if a, ok := attributeNamed(f.Name); ok {
			b.WriteString(a.short)
		} else {
			b.WriteString(f.Name)
		}
		b.WriteByte('=')
		b.WriteString(strings.NewReplacer(`\`, `\\`, `/`, `\/`).Replace(f.Value))
	}
	return b.String()
}

// check refuses values that no certificate may have.
func (dn DN) check() error {
	for _, f := range dn {
		a, ok := attributeNamed(f.Name)
		if !ok {
			return ErrBadName.WithHint("the field %s has no name here", f.Name)
		}
		n := utf8.RuneCountInString(f.Value)
		switch {
		case !utf8.ValidString(f.Value) || strings.ContainsFunc(f.Value, func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }):
			return ErrBadName.WithHint("%s has characters that are not text", a.long)
		case n == 0 || n > a.max:
			return ErrBadName.WithHint("%s has %d characters, allowed are 1 to %d", a.long, n, a.max)
		case a.long == fieldCountry && !letters(f.Value):
			return ErrBadName.WithHint("countryName is two letters, such as DE")
		case (a.long == fieldEmail || a.short == "DC") && strings.ContainsFunc(f.Value, func(r rune) bool { return r > unicode.MaxASCII }):
			return ErrBadName.WithHint("%s has characters beyond ASCII", a.long)
		}
	}
	return nil
}

func letters(s string) bool {
	return len(s) == 2 && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') })
}

// encode returns dn as a certificate carries it: one field a set.
func (dn DN) encode() ([]byte, error) {
	seq := pkix.RDNSequence{}
	for _, f := range dn {
		a, ok := attributeNamed(f.Name)
		if !ok {
			return nil, ErrBadName.WithHint("the field %s has no name here", f.Name)
		}
		var oid asn1.ObjectIdentifier
		for part := range strings.SplitSeq(a.oid, ".") {
			var n int
			if _, err := fmt.Sscan(part, &n); err != nil {
				return nil, fmt.Errorf("object identifier %s: %w", a.oid, err)
			}
			oid = append(oid, n)
		}
		var value any = f.Value
		switch {
		case a.long == fieldCountry:
			value = asn1.RawValue{Tag: asn1.TagPrintableString, Bytes: []byte(f.Value)}
		case a.long == fieldEmail || a.short == "DC":
			value = asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(f.Value)}
		}
		seq = append(seq, pkix.RelativeDistinguishedNameSET{{Type: oid, Value: value}})
	}
	return asn1.Marshal(seq)
}
