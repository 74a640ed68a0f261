package pg

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// fastArrays has m encode slices of plain types in one pass. pgx makes an interface value of
// each element, and its buffer grows step by step under the octets of mail.
func fastArrays(m *pgtype.Map) {
	for _, oid := range []uint32{
		pgtype.TextArrayOID, pgtype.Int2ArrayOID, pgtype.Int4ArrayOID, pgtype.Int8ArrayOID,
		pgtype.BoolArrayOID, pgtype.ByteaArrayOID, pgtype.UUIDArrayOID, pgtype.TimestamptzArrayOID,
	} {
		t, _ := m.TypeForOID(oid) // every map has these
		m.RegisterType(&pgtype.Type{Name: t.Name, OID: oid, Codec: arrayCodec{t.Codec.(*pgtype.ArrayCodec)}})
	}
}

// arrayCodec is an array's codec with plans of its own for some Go types.
type arrayCodec struct{ *pgtype.ArrayCodec }

// PlanEncode implements pgtype.Codec.
func (c arrayCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if format == pgtype.BinaryFormatCode {
		if plan := planFor(oid, value); plan != nil {
			return plan
		}
	}
	return c.ArrayCodec.PlanEncode(m, oid, format, value)
}

func planFor(oid uint32, value any) pgtype.EncodePlan {
	order := binary.BigEndian
	switch value.(type) {
	case []string:
		return planIf(oid, pgtype.TextArrayOID, arrayPlan[string]{pgtype.TextOID,
			func(s string) int { return len(s) }, func(b []byte, s string) ([]byte, error) { return append(b, s...), nil }})
	case [][]byte:
		return planIf(oid, pgtype.ByteaArrayOID, arrayPlan[[]byte]{pgtype.ByteaOID,
			func(s []byte) int { return len(s) }, func(b, s []byte) ([]byte, error) { return append(b, s...), nil }})
	case [][16]byte:
		return planIf(oid, pgtype.UUIDArrayOID, arrayPlan[[16]byte]{pgtype.UUIDOID,
			octets[[16]byte](16), func(b []byte, v [16]byte) ([]byte, error) { return append(b, v[:]...), nil }})
	case []int16:
		return planIf(oid, pgtype.Int2ArrayOID, arrayPlan[int16]{pgtype.Int2OID,
			octets[int16](2), func(b []byte, v int16) ([]byte, error) { return order.AppendUint16(b, uint16(v)), nil }})
	case []int32:
		return planIf(oid, pgtype.Int4ArrayOID, arrayPlan[int32]{pgtype.Int4OID,
			octets[int32](4), func(b []byte, v int32) ([]byte, error) { return order.AppendUint32(b, uint32(v)), nil }})
	case []int64:
		return planIf(oid, pgtype.Int8ArrayOID, arrayPlan[int64]{pgtype.Int8OID,
			octets[int64](8), func(b []byte, v int64) ([]byte, error) { return order.AppendUint64(b, uint64(v)), nil }})
	case []bool:
		return planIf(oid, pgtype.BoolArrayOID, arrayPlan[bool]{pgtype.BoolOID, octets[bool](1), appendBool})
	case []time.Time:
		return planIf(oid, pgtype.TimestamptzArrayOID, arrayPlan[time.Time]{pgtype.TimestamptzOID, octets[time.Time](8), appendTime})
	}
	return nil
}

// planIf is the plan for values of a Go type if the array is of the type that it is for.
func planIf(oid, planned uint32, plan pgtype.EncodePlan) pgtype.EncodePlan {
	if oid != planned {
		return nil
	}
	return plan
}

func octets[T any](n int) func(T) int { return func(T) int { return n } }

func appendBool(b []byte, v bool) ([]byte, error) {
	if v {
		return append(b, 1), nil
	}
	return append(b, 0), nil
}

// PostgreSQL counts microseconds from the year 2000, and has no more than these years.
const (
	sinceEpoch       = 946_684_800 // seconds to 2000 from 1970
	minYear, maxYear = -4712, 294_276
)

func appendTime(b []byte, t time.Time) ([]byte, error) {
	if year := t.UTC().Year(); year <= minYear || year >= maxYear {
		return nil, fmt.Errorf("the year %d is not one that PostgreSQL has", year)
	}
	return binary.BigEndian.AppendUint64(b, uint64((t.Unix()-sinceEpoch)*1_000_000+int64(t.Nanosecond())/1000)), nil
}

// arrayPlan encodes a []T as an array of one dimension. A nil []byte in it is an empty one.
type arrayPlan[T any] struct {
	element uint32
	size    func(T) int // octets of an element
	put     func([]byte, T) ([]byte, error)
}

// Encode implements pgtype.EncodePlan. A nil slice is null, as with pgx.
func (p arrayPlan[T]) Encode(value any, buf []byte) ([]byte, error) {
	list := value.([]T)
	if list == nil {
		return nil, nil
	}
	total := 20
	for _, v := range list {
		total += 4 + p.size(v)
	}
	order := binary.BigEndian
	buf = slices.Grow(buf, total)
	for _, v := range []int32{1, 0, int32(p.element), int32(len(list)), 1} { // dimensions, nulls, type, length, lower bound
		buf = order.AppendUint32(buf, uint32(v))
	}
	var err error
	for _, v := range list {
		buf = order.AppendUint32(buf, uint32(p.size(v)))
		if buf, err = p.put(buf, v); err != nil {
			return nil, err
		}
	}
	return buf, nil
}
