const MAX_DEPTH = 64;

/** `\uD800` alone names no character, so no name or text may hold it. */
const LONE_SURROGATE = /\p{Surrogate}/u;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const KEYWORD = /true|false|null/y;
// biome-ignore lint/suspicious/noControlCharactersInRegex: JSON must escape them
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const SPACE = /[ \t\n\r]*/y;

/**
 * Reads JSON (RFC 8259) piece by piece, in one pass, and builds only what the
 * caller keeps. Unlike `JSON.parse` it refuses a key that an object holds
 * twice, and values nested deeper than 64. `fault` makes the error to throw
 * from the rule that the text breaks.
 */
export class JsonReader {
  private at = 0;
  private depth = 0;

  constructor(
    private readonly text: string,
    private readonly fault: (rule: string) => Error,
  ) {}

  /** Calls `member` at each member's value, which it must read or skip. */
  object(member: (key: string) => void): void {
    const keys = new Set<string>();
    this.list('{', '}', 'an object', () => {
      const key = this.string();
      if (keys.has(key)) this.fail(`key ${show(key)} is there twice`);
      keys.add(key);
      this.space();
      if (!this.take(':')) this.expected('":"');
      member(key);
    });
  }

  /** Calls `item` at each item, which it must read or skip. */
  array(item: () => void): void {
    this.list('[', ']', 'an array', item);
  }

  string(): string {
    this.space();
    const start = this.at;
    if (!this.take('"')) this.expected('a string');
    let escaped = false;
    this.pass(PLAIN);
    while (this.take('\\')) {
      escaped = true;
      this.at++;
      this.pass(PLAIN);
    }
    if (!this.take('"')) this.expected('the end of a string');
    if (!escaped) return this.text.slice(start + 1, this.at - 1);
    return this.unescape(this.text.slice(start, this.at));
  }

  /** A whole number from 0 to 2^53 - 1, written in digits alone. */
  natural(): number {
    this.space();
    const number = this.match(NUMBER);
    if (number === '') this.expected('a number');
    const value = Number(number);
    if (!/^[0-9]+$/.test(number) || !Number.isSafeInteger(value)) {
      this.fail(
        `must be a whole number from 0 to 2^53 - 1, got ${show(number)}`,
      );
    }
    return value;
  }

  /** Any value, checked but not kept. */
  skip(): void {
    this.space();
    const next = this.text[this.at];
    if (next === '{') this.object(() => this.skip());
    else if (next === '[') this.array(() => this.skip());
    else if (next === '"') this.string();
    else if (this.match(NUMBER) === '' && this.match(KEYWORD) === '') {
      this.expected('a value');
    }
  }

  /** Nothing but white space may follow the value read. */
  end(): void {
    this.space();
    if (this.at < this.text.length) this.expected('the end');
  }

  private list(
    open: string,
    close: string,
    kind: string,
    item: () => void,
  ): void {
    this.space();
    if (!this.take(open)) this.expected(kind);
    if (++this.depth > MAX_DEPTH) {
      this.fail(`nesting must be at most ${MAX_DEPTH} deep`);
    }
    this.space();
    if (!this.take(close)) {
      do {
        item();
        this.space();
      } while (this.take(','));
      if (!this.take(close)) this.expected(`"," or "${close}"`);
    }
    this.depth--;
  }

  private unescape(literal: string): string {
    let value = '';
    try {
      value = JSON.parse(literal);
    } catch {
      this.fail(`a string has a wrong escape, got ${show(literal)}`);
    }
    if (LONE_SURROGATE.test(value)) {
      this.fail(`a string has half a surrogate pair, got ${show(literal)}`);
    }
    return value;
  }

  private space(): void {
    // Most often there is none: the look costs less than the pattern.
    if (this.text.charCodeAt(this.at) <= 0x20) this.pass(SPACE);
  }

  private take(character: string): boolean {
    if (this.text[this.at] !== character) return false;
    this.at++;
    return true;
  }

  /** Moves past what the pattern matches here. */
  private pass(pattern: RegExp): void {
    pattern.lastIndex = this.at;
    if (pattern.test(this.text)) this.at = pattern.lastIndex;
  }

  private match(pattern: RegExp): string {
    const start = this.at;
    this.pass(pattern);
    return this.text.slice(start, this.at);
  }

  private expected(what: string): never {
    const got = this.text.slice(this.at, this.at + 20);
    this.fail(
      `JSON needs ${what} at character ${this.at}, got ${got === '' ? 'the end' : show(got)}`,
    );
  }

  private fail(rule: string): never {
    throw this.fault(rule);
  }
}

/** A value of the file for an error message, cut where it is long. */
function show(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}
