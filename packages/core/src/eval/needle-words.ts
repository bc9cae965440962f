/** What keys are made of: `adjective-noun`. */
export interface KeyWords {
  readonly adjectives: readonly string[];
  readonly nouns: readonly string[];
}

/** Common words; 2,304 keys. */
export const keyWords: KeyWords = {
  adjectives: words(
    'able amber ancient bitter bold brave brief bright broad calm clever cold',
    'curious daring dusty eager early faint fierce gentle golden grand hollow',
    'honest humble idle keen lively lonely loud mellow modest narrow noble',
    'patient plain proud quiet rapid rare rough rustic silent simple steady',
    'tender vivid wooden',
  ),
  nouns: words(
    'acorn anchor arrow basket beacon bottle bridge candle canyon castle',
    'cherry cloud comet copper desert engine feather fiddle forest garden',
    'glacier hammer harbor island jacket kettle ladder lantern marble meadow',
    'mirror mountain needle orchard paddle parcel pebble pillow ribbon river',
    'saddle shadow shelter spider timber tunnel valley window',
  ),
};

function words(...lines: string[]): string[] {
  return lines.join(' ').split(' ');
}
