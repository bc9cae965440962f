import fc from 'fast-check';
import { bytesPerElement, type DType } from '../../packages/core/src/dtype';
import type { NamedTensor } from '../../packages/core/src/io/safetensors';

const dtypes: DType[] = ['f64', 'f32', 'f16', 'bf16', 'i32'];

const oddNames = ['', '__proto__', 'constructor', 'toString', '"\\\n', 'é😀'];

const name = fc.oneof(
  fc.constantFrom(...oddNames),
  fc.string({ unit: 'grapheme', maxLength: 12 }),
  fc.stringMatching(/^model\.layers\.[0-9]\.[a-z]{1,8}\.weight$/),
);

const shape = fc.array(fc.nat({ max: 5 }), { maxLength: 4 });

/** Any bits at all, so that NaN payloads and -0 are among them. */
function hostArray(dtype: DType, bytes: Uint8Array) {
  const { buffer } = bytes.slice();
  if (dtype === 'f64') return new Float64Array(buffer);
  if (dtype === 'f32') return new Float32Array(buffer);
  if (dtype === 'i32') return new Int32Array(buffer);
  return new Uint16Array(buffer);
}

const tensor: fc.Arbitrary<NamedTensor> = fc
  .tuple(name, fc.constantFrom(...dtypes), shape)
  .chain(([name, dtype, shape]) => {
    const length = shape.reduce((a, b) => a * b, bytesPerElement[dtype]);
    return fc
      .uint8Array({ minLength: length, maxLength: length })
      .map((bytes) => ({ name, dtype, shape, data: hostArray(dtype, bytes) }));
  });

/** Up to five tensors with names of their own. */
export const tensors = fc.uniqueArray(tensor, {
  selector: (tensor) => tensor.name,
  maxLength: 5,
});

export const metadata = fc.dictionary(
  fc.constantFrom('format', 'note', 'é'),
  fc.string({ unit: 'grapheme' }),
);

type Mutation = (bytes: Uint8Array) => Uint8Array;

const headerLength = (bytes: Uint8Array) =>
  Number(new DataView(bytes.buffer).getBigUint64(0, true));

const bitFlip = fc
  .tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.nat({ max: 7 }))
  .map(([where, bit]): Mutation => {
    return (bytes) => {
      const flipped = bytes.slice();
      const at = Math.min(Math.floor(where * bytes.length), bytes.length - 1);
      if (at >= 0) flipped[at]! ^= 1 << bit;
      return flipped;
    };
  });

const resize = fc.integer({ min: -40, max: 40 }).map((by): Mutation => {
  return (bytes) => {
    const resized = new Uint8Array(Math.max(0, bytes.length + by));
    resized.set(bytes.subarray(0, resized.length));
    return resized;
  };
});

const claim = fc
  .bigInt({ min: 0n, max: 2n ** 64n - 1n })
  .map((length): Mutation => {
    return (bytes) => {
      const claimed = bytes.slice();
      if (bytes.length >= 8) {
        new DataView(claimed.buffer).setBigUint64(0, length, true);
      }
      return claimed;
    };
  });

/** Parts of the grammar, right ones and wrong ones. */
const tokens = [
  '"F32"',
  '"BF16"',
  '"I64"',
  '"BOOL"',
  '"F4"',
  '"f32"',
  '"__metadata__"',
  '"a"',
  '""',
  '[]',
  '[0]',
  '[1,2]',
  '[0,4]',
  '[4,0]',
  '[-1]',
  '[1.5]',
  '[9007199254740991,9007199254740991]',
  '0',
  '1',
  '4',
  '8',
  '-1',
  '1e3',
  '18446744073709551615',
  '{}',
  'null',
  'true',
  ',',
  ':',
  '\\ud800',
];

/** One token of a JSON text: a string, a flat array, a number, a mark. */
const TOKEN = /"(?:[^"\\]|\\.)*"|\[[0-9,]*\]|-?[0-9]+|[{}[\],:]/gu;

/** Puts a token of the header in another's place, before it, or twice. */
const tokenEdit = fc
  .tuple(
    fc.nat(),
    fc.constantFrom(...tokens),
    fc.constantFrom('replace', 'insert', 'double', 'drop'),
  )
  .map(([which, token, how]): Mutation => {
    return editHeader((text) => {
      const found = [...text.matchAll(TOKEN)];
      const old = found[which % Math.max(1, found.length)];
      if (!old) return text;
      const put = {
        replace: token,
        insert: token + old[0],
        double: old[0] + old[0],
        drop: '',
      }[how];
      const end = old.index + old[0].length;
      return text.slice(0, old.index) + put + text.slice(end);
    });
  });

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: number[];
}

const dtypeNames = ['F64', 'F32', 'F16', 'I32', 'I64', 'U8', 'F4', 'F8_E4M3'];

/** Edits that keep the JSON right: some keep the file right as well. */
const entryEdit = fc
  .tuple(
    fc.nat(),
    fc.constantFrom('dtype', 'reshape', 'shift', 'swap', 'twin', 'rename'),
    fc.integer({ min: -8, max: 8 }),
    fc.constantFrom(...oddNames, '__metadata__', 'a'),
  )
  .map(([which, how, by, name]): Mutation => {
    return editHeader((text) => {
      const entries = Object.entries(JSON.parse(text) as object).filter(
        ([key]) => key !== '__metadata__',
      ) as [string, Entry][];
      const chosen = entries[which % Math.max(1, entries.length)];
      if (!chosen) return text;
      const [, entry] = chosen;
      const other = entries[(which + 1) % entries.length]![1];
      if (how === 'dtype') entry.dtype = dtypeNames[Math.abs(by) % 8]!;
      if (how === 'reshape') entry.shape = [...entry.shape, by].reverse();
      if (how === 'shift') entry.data_offsets[Math.abs(by) % 2]! += by;
      if (how === 'swap') {
        const offsets = entry.data_offsets;
        entry.data_offsets = other.data_offsets;
        other.data_offsets = offsets;
      }
      if (how === 'twin') entries.push([chosen[0], other]);
      if (how === 'rename') chosen[0] = name;
      // By hand, for an object cannot hold a key twice.
      const members = entries.map(
        ([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`,
      );
      return `{${members.join(',')}}`;
    });
  });

/** Changes the header's text and its length; what is no header stays. */
function editHeader(edit: (text: string) => string): Mutation {
  return (bytes) => {
    if (bytes.length < 8 || headerLength(bytes) > bytes.length - 8) {
      return bytes;
    }
    const end = 8 + headerLength(bytes);
    const text = new TextDecoder().decode(bytes.subarray(8, end));
    let header: Uint8Array;
    try {
      header = new TextEncoder().encode(edit(text));
    } catch {
      return bytes;
    }
    const edited = new Uint8Array(8 + header.length + bytes.length - end);
    new DataView(edited.buffer).setBigUint64(0, BigInt(header.length), true);
    edited.set(header, 8);
    edited.set(bytes.subarray(end), 8 + header.length);
    return edited;
  };
}

const mutation = fc.oneof(
  { arbitrary: bitFlip, weight: 4 },
  { arbitrary: resize, weight: 1 },
  { arbitrary: claim, weight: 1 },
  { arbitrary: tokenEdit, weight: 3 },
  { arbitrary: entryEdit, weight: 4 },
);

/** One to three changes to a file's bytes, mostly one. */
export const mutations: fc.Arbitrary<Mutation> = fc
  .oneof(
    { arbitrary: fc.tuple(mutation), weight: 3 },
    {
      arbitrary: fc.array(mutation, { minLength: 2, maxLength: 3 }),
      weight: 1,
    },
  )
  .map((all) => (bytes) => all.reduce((file, mutate) => mutate(file), bytes));
