package pg

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// TestFastArrays: what is written is what pgx writes, octet for octet.
func TestFastArrays(t *testing.T) {
	t.Parallel()
	ours, theirs := pgtype.NewMap(), pgtype.NewMap()
	fastArrays(ours)
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		oid    uint32
		values []any
	}{
		{pgtype.TextArrayOID, []any{[]string{"a", "", "grüß"}, []string{}, []string(nil), pgtype.FlatArray[string]{"a"}}},
		{pgtype.ByteaArrayOID, []any{[][]byte{{0, 1}, {}, bytes.Repeat([]byte("x"), 10_000)}, [][]byte{}, [][]byte(nil)}},
		{pgtype.UUIDArrayOID, []any{[][16]byte{{1}, {15: 2}}, [][16]byte{}}},
		{pgtype.Int2ArrayOID, []any{[]int16{-1, 0, 7}}},
		{pgtype.Int4ArrayOID, []any{[]int32{-1, 0, 7}, []int{1, 2}, []int64{3}}},
		{pgtype.Int8ArrayOID, []any{[]int64{-1, 0, random.Int64()}}},
		{pgtype.BoolArrayOID, []any{[]bool{true, false}}},
		{pgtype.TimestamptzArrayOID, []any{[]time.Time{time.Unix(0, 0), time.Unix(random.Int64N(1<<33), 999_999_999), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}}},
	} {
		for _, value := range c.values {
			want, err := theirs.Encode(c.oid, pgtype.BinaryFormatCode, value, []byte("before"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := ours.Encode(c.oid, pgtype.BinaryFormatCode, value, []byte("before"))
			if err != nil || !bytes.Equal(got, want) || (got == nil) != (want == nil) {
				t.Errorf("%T %v: % x, %v; pgx: % x", value, value, got, err, want)
			}
		}
	}
	if _, err := ours.Encode(pgtype.TimestamptzArrayOID, pgtype.BinaryFormatCode, []time.Time{time.Date(300_000, 1, 1, 0, 0, 0, 0, time.UTC)}, nil); err == nil {
		t.Error("a year that PostgreSQL does not have is written")
	}
}
