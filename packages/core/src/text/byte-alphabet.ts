/**
 * The byte alphabet of GPT-2: every byte has a printable character, so that a
 * vocabulary of byte strings can be written as JSON text. Printable Latin-1
 * bytes stand for themselves, the others move up to U+0100 and on.
 *
 * Source: Radford et al. 2019, `bytes_to_unicode`.
 */
function charactersOfBytes(): string[] {
  let moved = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) ||
      (byte >= 0xa1 && byte <= 0xac) ||
      byte >= 0xae;
    return String.fromCharCode(printable ? byte : moved++);
  });
}

/** The character of each byte, index 0 to 255. */
export const BYTE_CHARACTERS: readonly string[] = charactersOfBytes();

const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = new Map(
  BYTE_CHARACTERS.map((character, byte) => [character, byte]),
);

/** The bytes of `text`, or undefined when it leaves the byte alphabet. */
export function alphabetToBytes(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const byte = BYTE_OF_CHARACTER.get(text.charAt(i));
    if (byte === undefined) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}
